"""What can be said of an encoder from its features alone: neighbors, agreement, collapse.

What reads a label belongs in ``evaluate``; what compares features to train on them, in ``losses``.
"""
