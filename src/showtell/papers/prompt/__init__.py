"""Prompts: rewriting, enriching and choosing what a model is told."""
