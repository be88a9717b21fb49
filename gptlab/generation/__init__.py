"""Text from a model and a prompt."""
