"""Models on disk: the files of an exported encoder, how they are written, checked, opened and run.

No training and no images: those who open an artifact later have neither.
"""
