"""Judges measured cells: change, interval, verdict and cause. No torch."""
