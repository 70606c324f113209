"""Weights of few values or mostly zeros: codebooks, grids, masks.

The file format that stores them is in `artifacts.coding`.
"""
