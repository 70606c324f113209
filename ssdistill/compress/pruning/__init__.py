"""Structured pruning: coupled channels, heads and blocks, their importance and removal.

The steps are `prune` and what follows it; single weights are set to zero in `zeros` and `codes`.
"""
