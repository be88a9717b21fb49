"""One run, from checked settings to its summary; the room of Lightning."""
