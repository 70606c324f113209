"""Outputs of frozen teachers on disk: their key, parts, filling and reading.

What a training does with them is in `chain.recorded_outputs`.
"""
