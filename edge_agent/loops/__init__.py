"""The agent's endless tasks. They carry out what `core` decides."""
