"""How fast: the same network by several programs, over loops and sizes, and a job from end to end."""
