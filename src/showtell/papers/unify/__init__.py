"""Unification: one model that both shows and tells."""
