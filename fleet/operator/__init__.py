"""What operators do to the fleet's state, beside rollouts. Every call blocks."""
