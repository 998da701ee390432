"""Measures cells: batches, models, step times, exact costs, and what they ran on."""
