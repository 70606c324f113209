"""Checkpoints of other projects: read without running them, recognised, and renamed to timm's."""
