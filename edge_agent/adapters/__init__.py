"""The only users of SQLite, LiteRT, amqtt, sockets and the file system in the agent."""
