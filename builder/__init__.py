"""Make an edge model of a cloud model, and the threshold that keeps a target."""
