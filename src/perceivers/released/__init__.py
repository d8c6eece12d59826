"""The published models: their formats, read and written."""
