"""Image data: source → store → loader → views.

Labels are checked here and read in ``evaluate`` alone; networks belong in ``models``.
"""
