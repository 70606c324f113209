"""Label-free metrics of encoders: features, neighbors, similarity, collapse."""
