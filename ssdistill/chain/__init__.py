"""What a run does, in order: the plan, the work of each stage, the report.

How a stage computes belongs to the rooms below, what it prints to `report`.
"""
