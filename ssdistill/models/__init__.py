"""Networks that map images to embeddings: building, tapping and rebuilding them.

Weights of others come from `teachers`, files for runtimes from `artifacts`.
"""
