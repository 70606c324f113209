"""Algorithms of the protocols: regression, k-NN, clustering, training on labels."""
