"""The architecture: attention, positions, and PerceiverIO. Arrays only; imports nothing else of the package."""
