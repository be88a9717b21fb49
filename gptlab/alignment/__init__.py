"""What teaches a model to answer, beyond the next token of a text: losses, advantages and rewards."""
