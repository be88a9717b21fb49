"""The plots of a report: a file for each kind, and the style of all."""
