"""Tables, charts and pages, generated from records alone."""
