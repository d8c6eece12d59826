"""Real files and data sets -> batches: one file a kind of data. No model code."""
