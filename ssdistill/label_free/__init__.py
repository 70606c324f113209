"""What can be said of an encoder without labels: features, neighbors, similarity, collapse."""
