"""The packing that trainers do, run by their own code on two families: `pytest -m trainers`."""
