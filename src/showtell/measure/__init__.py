"""Judges, metrics and statistics: what is right in an image or a sentence, and how sure one can be."""
