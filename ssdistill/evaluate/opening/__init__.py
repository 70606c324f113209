"""Open what is to be evaluated: encoders and images from paths, names or objects.

How a file format is read belongs in ``artifacts``, ``teachers`` or ``data``.
"""
