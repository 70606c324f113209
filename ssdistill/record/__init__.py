"""Records of runs, and the loggers that logger them."""
