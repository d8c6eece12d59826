"""Turns files and data sets into batches: one module per kind of data, no model code."""
