"""Printing to a terminal: width, streams, tables that fit.

What to print belongs to the rooms that know it.
"""
