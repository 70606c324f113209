"""SVG charts, one file for each kind."""
