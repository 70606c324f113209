"""Parts that several losses share: banks, similarities, matching, maps, prototypes.

What one loss alone needs stays in its file.
"""
