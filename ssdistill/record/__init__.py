"""Records of runs, and the loggers that get the same numbers.

What is shown of a record belongs in `report`.
"""
