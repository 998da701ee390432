"""Live pairs: base and head alive at once, running short blocks of the same batches in turn."""
