"""Functions for programs and notebooks: each is an experiment, as a YAML file would describe it.

What a function does is in the rooms below; here objects of a program become sections of a config.
"""
