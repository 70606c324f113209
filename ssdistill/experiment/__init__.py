"""What a config may say: its sections, how YAML files and overrides are read and merged."""
