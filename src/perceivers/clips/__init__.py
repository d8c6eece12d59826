"""Clips of video with sound: classes (AudioSet, section 4.6) and autoencoding (section 4.3)."""
