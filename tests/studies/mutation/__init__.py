"""Mutation testing of `collators/` and `model/`: `tox -e mutation`, described in docs/results/mutation.md."""
