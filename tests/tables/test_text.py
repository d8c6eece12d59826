"""Texts: words to read, and bytes to fill in."""
