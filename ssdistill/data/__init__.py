"""Where pictures come from: source → store → loader → views."""
