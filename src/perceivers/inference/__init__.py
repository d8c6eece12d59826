"""Trained models on real files: one file a command, with a function of the same name and arguments."""
