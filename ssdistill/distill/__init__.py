"""A student beside its frozen teachers: views, pairs and losses put together into one task.

A loss itself belongs in ``losses``, the loop that trains the task in ``train``.
"""
