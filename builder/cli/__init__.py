"""`overspill model build` and `overspill explain`."""
