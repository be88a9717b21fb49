"""What happens around the steps of a run: Lightning's callbacks."""
