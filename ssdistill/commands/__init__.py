"""One file or folder = one command of the terminal. Parsing and printing, nothing else."""
