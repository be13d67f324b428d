"""What the agent is made of; each part joins its loops and adapters, and starts them."""
