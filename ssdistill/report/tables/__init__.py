"""Tables, one file for each kind, and the columns that they share."""
