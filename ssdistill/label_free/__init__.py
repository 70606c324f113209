"""Label-free metrics of an encoder's features: neighbors, agreement, collapse.

What reads a label belongs in ``evaluate``; what compares features to train on them, in ``losses``.
"""
