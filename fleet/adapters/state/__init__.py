"""The fleet's memory in SQLite or PostgreSQL. The only user of SQLAlchemy."""
