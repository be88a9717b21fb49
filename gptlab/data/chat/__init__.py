"""Conversations: rows of messages to ids and masks, and to batches."""
