"""Per-layer allocation of compression under one budget."""
