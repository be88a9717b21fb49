"""A model and a prompt become text."""
