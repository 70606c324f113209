"""One file per image source or family; a new file is registered automatically.

How images become batches belongs to the files above.
"""
