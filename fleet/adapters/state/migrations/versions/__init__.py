"""One file a schema. A published one never changes."""
