"""The exact loss of a model on a text, the difference between two models, and copies of the training text."""
