"""Write the images of a source as shards, unchanged or downscaled.

Reading shards belongs in `shards`.
"""
