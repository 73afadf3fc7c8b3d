"""A run -> a verdict: rules by subject, their thresholds, and what they need to know."""
