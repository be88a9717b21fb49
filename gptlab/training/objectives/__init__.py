"""What a run minimises, and what it measures of held-out data: one file for each kind of data."""
