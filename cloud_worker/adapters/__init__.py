"""The only users of the runtimes, the model repository and the models' processes."""
