"""The training loop and its parts: optimizer, checkpoints, observers.

What is minimized belongs to `pretrain` and `distill`.
"""
