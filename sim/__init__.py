"""The memory: machines, programs, and the simulator that plays them."""
