"""Curation: which data, with which captions."""
