"""The parts of `benchmarks/cpu.py`: who competes, in processes of their own; at what; and what came of it."""
