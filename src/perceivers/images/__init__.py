"""Image classification (section 4.4)."""
