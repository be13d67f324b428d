"""The only users of SQLAlchemy, of the registry's files and of the broker."""
