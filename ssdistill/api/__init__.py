"""Functions for programs and notebooks: each is an experiment, as a YAML file would describe it.

Here objects of a program become sections of a config, and nothing else: what an experiment does
belongs in `chain`, what the terminal prints in `commands`.
"""
