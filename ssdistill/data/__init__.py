"""Where images come from: source → store → loader → views."""
