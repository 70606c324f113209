"""What a run does, in order: the plan, the work of each stage, the report."""
