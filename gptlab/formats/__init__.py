"""A model as a file: ours and the formats of others, in and out."""
