"""`ssdistill data`: what is done with images before any training.

One file for each subcommand, found by its function ``add``; the work itself belongs in `data`.
"""
