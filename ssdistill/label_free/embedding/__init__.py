"""Write the embeddings of many images to a file, row by row, in memory that is bounded.

Opening a model or a source from its name belongs in ``evaluate/opening``.
"""
