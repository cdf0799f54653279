"""Heads of other methods, compared with the package's own (`chameleon_lite/heads.py`)."""
