"""The ground of all rooms: errors, files, the machine and its accelerator, the terminal."""
