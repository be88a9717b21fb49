"""Chapters that a student follows: commands, what they should give, a picture, exercises."""
