"""A level of compression for every layer under one budget: allocation, damages, costs.

The step is `search`; how a single layer is compressed belongs to the other steps.
"""
