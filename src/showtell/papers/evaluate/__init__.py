"""Evaluation: scores and benchmarks, and what they are worth."""
