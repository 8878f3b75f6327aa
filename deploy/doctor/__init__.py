"""What is installed, what fits together, and the command that mends what does not."""
