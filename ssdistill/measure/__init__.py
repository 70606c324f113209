"""Cost of a finished model: parameters, MACs, bytes on disk, latency, memory.

How good its embeddings are belongs to `label_free` and `evaluate`.
"""
