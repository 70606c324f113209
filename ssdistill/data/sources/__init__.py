"""One file per image source or family; a new file is registered automatically.

Building batches from images belongs to the parent folder.
"""
