"""Streams: what a model gains that learns from the texts that have passed, and what there was to gain."""
