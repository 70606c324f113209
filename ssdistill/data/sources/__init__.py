"""One file per image source or family; a new file is registered automatically."""
