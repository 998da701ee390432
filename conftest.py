"""Hypothesis profiles and plugins; nothing else."""

from hypothesis import HealthCheck, settings

pytest_plugins = [
    "pytester",
    "gate.plugin",
    "tests.selection",
    "tests.matrix",
    "tests.workers",
    "tests.huggingface.plugin",
]

# A cell's first example builds its model, and a compiled one compiles: examples have no deadline.
settings.register_profile("ci", max_examples=20, deadline=None, derandomize=True, database=None)
settings.register_profile("dev", max_examples=20, deadline=None)
settings.register_profile("deep", max_examples=250, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("ci")
