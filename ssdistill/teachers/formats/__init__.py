"""Checkpoints of other projects: read without running code, recognized, renamed to timm's keys.

Which network a checkpoint becomes is decided in `teachers`.
"""
