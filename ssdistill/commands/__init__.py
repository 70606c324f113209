"""One file or folder = one command of the terminal; the shortest are in `main`, which parses.

Parsing and printing, nothing else.
"""
