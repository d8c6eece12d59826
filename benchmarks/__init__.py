"""Measurements of this library beside other implementations: `make bench` writes docs/performance.md."""
