"""`python -m gate ab`: two commits or environments in turn, by pairs of fresh processes."""
