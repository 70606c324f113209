"""Least-squares reconstruction of layers: observing them, targets, solving. The step is `refit`."""
