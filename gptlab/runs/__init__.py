"""A run as data: composed, checked, named, kept in a folder. Nothing here loads torch or Lightning."""
