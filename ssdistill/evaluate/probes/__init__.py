"""How protocols find their numbers: regressions, neighbours, trainings, with features given."""
