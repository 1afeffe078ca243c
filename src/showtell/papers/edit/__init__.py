"""Editing: changing a picture as a text says."""
