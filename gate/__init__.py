"""Timing records and what is read from them: environment, journal, comparison, tables, the pytest plugin."""
