"""Coded weights on disk: codes, their bytes (packing, Huffman) and the file of a whole model.

How a weight comes to be coded belongs in ``compress``.
"""
