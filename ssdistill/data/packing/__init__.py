"""Write a source's images as shards: as they are, or smaller.

How shards are read belongs in `shards`.
"""
