"""A whole model in another number format; see backbones.py."""

from .backbones import in_format, set_format

__all__ = ["in_format", "set_format"]
