"""Compressed weight files: palettes, sparse weights, Huffman codes and bit packing."""
