"""Acceleration: the same images in fewer steps or with less work."""
