"""Image data: source → store → loader → views."""
