"""Faults of the gate: what it compares, counts and passes."""

from tests.meta.faults.fault import Faults

GATE = Faults("gate")
plant = GATE.plant
