"""Optical flow (section 4.2)."""
