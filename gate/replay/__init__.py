"""`python -m gate replay`: recorded processes as comparisons, to see how often the gate errs."""
