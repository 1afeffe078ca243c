"""Personalization: subjects and styles learned from a few pictures."""
