"""The architecture: attention, positions, and PerceiverIO, on arrays; it depends on no domain."""
