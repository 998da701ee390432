"""A step on several ranks is the step of one process on the joined batch: `pytest -m distributed`."""
