"""Columns of pictures, sounds and video clips."""
