"""Pytest plugin: `pytest --matrix` prints every combination and its state on this machine."""
