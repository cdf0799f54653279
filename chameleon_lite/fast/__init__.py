"""Faster forms of some functions, entered through `engine.py` only; without this folder they run plainly."""
