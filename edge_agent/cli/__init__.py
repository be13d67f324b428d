"""The commands of `overspill-agent` that are more than a question to the daemon."""
