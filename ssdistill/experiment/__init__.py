"""What a config may say: its sections, how YAML files and overrides are read and merged.

What its settings do belongs to the rooms that take them.
"""
