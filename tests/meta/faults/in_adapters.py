"""Faults of what backends hand to kernels that a CPU never calls."""

from tests.meta.faults.fault import Faults

ADAPTERS = Faults("adapters")
plant = ADAPTERS.plant
