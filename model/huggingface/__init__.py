"""Models of transformers: every family built small, its inputs, and what packing does to it."""
