"""Composition: every object present, with its own attributes, in its own place."""
