"""The exact loss of a model on a text, and whether two models differ."""
