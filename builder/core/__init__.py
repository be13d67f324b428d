"""What a build decides. Pure: arrays and options in, values out."""
