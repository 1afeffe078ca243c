"""Responsibility: safety, fairness, memorization, provenance."""
