"""What holds for every type of column."""
