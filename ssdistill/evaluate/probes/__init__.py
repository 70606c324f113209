"""How protocols find their numbers: regressions, neighbors, trainings, with features given."""
