"""What a model does with a text: lens, attention, surprisal, training passages, embeddings, as numbers and a page."""
