"""Recorded outputs of frozen teachers, for views that repeat after some passes over the images."""
