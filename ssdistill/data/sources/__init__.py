"""One file = one source of images, or one family of them. A new file here is found by itself."""
