"""How many loops are in time on this machine: candidates, their times, the frontier."""
