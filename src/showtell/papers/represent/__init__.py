"""Representations: encoders, tokenizers and captioners that the rest is built on."""
