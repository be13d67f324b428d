"""The only users of SQLite, of the bundle store and of the broker."""
