"""Text to ids to batches: files and corpora, the split, prepared ids on disk, tokenizers."""
