"""Open encoders and images from paths, names or objects."""
