"""Tar archives of images (WebDataset's shards), read by row through an index of offsets.

How shards are written belongs in `packing`.
"""
