"""Training runs of all experiments."""
