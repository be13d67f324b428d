"""The operator's commands that belong to no single program."""
