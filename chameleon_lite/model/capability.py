"""Which number format a machine multiplies fast; see backbones.py."""

from .backbones import backbone_dtype, cpu_flags, matmul_dtype, number_format

__all__ = ["backbone_dtype", "cpu_flags", "matmul_dtype", "number_format"]
