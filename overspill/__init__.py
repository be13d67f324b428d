"""Distribution and command: the `overspill` program and what it starts."""
