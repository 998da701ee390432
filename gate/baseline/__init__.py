"""A run against a baseline: what is stored, how noisy it is, and what is said of each cell."""
