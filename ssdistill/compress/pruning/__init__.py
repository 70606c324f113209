"""Structured pruning: coupled channels, heads and blocks, their importance and removal."""
