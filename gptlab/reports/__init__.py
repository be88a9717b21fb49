"""Finished runs become tables, statistics and plots. Nothing here loads torch."""
