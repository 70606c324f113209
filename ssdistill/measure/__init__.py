"""Cost of a model: parameters, MACs, bytes on disk, latency, memory."""
