"""Image data: source → store → loader → views.

Labels are validated here, but read by ``evaluate`` alone; networks belong in ``models``.
"""
