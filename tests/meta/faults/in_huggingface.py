"""Faults of what feeds and checks models of transformers."""

from tests.meta.faults.fault import Faults

HUGGINGFACE = Faults("huggingface")
plant = HUGGINGFACE.plant
