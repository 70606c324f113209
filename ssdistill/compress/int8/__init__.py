"""Int8 files for every runtime: writing, equalizing and correcting them.

The step is `quantize`; what opens the files is in `artifacts`.
"""
