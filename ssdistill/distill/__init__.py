"""Frozen teacher, student, and the losses between them."""
