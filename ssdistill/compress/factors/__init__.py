"""Low-rank factors of layers: decomposition and choice of ranks."""
