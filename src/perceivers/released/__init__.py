"""The file formats of the published models."""
