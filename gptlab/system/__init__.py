"""What all other packages build on: errors, files, the machine and its accelerator, the terminal."""
