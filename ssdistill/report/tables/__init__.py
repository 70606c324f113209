"""Tables, one file for each kind, and the columns that they share.

How wide a terminal is belongs in `terminal`.
"""
