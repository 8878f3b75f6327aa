"""Training: weather synthesis, data, the paper's losses, the loop, evaluation."""
