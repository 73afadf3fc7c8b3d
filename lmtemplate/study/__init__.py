"""What a run, or a plan, can tell: one verb, one file."""
