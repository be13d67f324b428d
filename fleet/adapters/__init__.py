"""The only users of SQLite, of the registry and of the broker."""
