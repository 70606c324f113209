"""Tar archives of images (WebDataset shards), read by row through an index of offsets.

Writing shards belongs in `packing`.
"""
