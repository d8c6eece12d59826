"""Writes models as graphs, which run without this package: as ONNX, or as a program of torch."""
