"""The commands of an operator; each module is one `typer` app."""
