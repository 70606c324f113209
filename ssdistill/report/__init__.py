"""Tables, charts and pages, generated from records alone.

What a run is and when it is shown belongs to `chain` and `commands`.
"""
