"""Rows as samples of a model: missing cells, hidden cells, batches."""
