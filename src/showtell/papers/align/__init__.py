"""Alignment: training on preferences and rewards."""
