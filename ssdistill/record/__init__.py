"""Records of runs, and the loggers that mirror them."""
