"""The decoder that takes any attention backend, its steps and its workloads."""
