"""What the paper compares Perceiver IO with."""
