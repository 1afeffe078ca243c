"""Inference-time machinery that many papers share: techniques, and functions that techniques use."""
