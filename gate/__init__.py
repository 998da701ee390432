"""Timing records and what is read from them: environment, journal, comparison, tables, the pytest plugin."""

from pathlib import Path

#: The checkout that this gate belongs to.
ROOT = Path(__file__).resolve().parents[1]
