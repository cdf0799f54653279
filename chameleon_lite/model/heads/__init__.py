"""Heads: what adapts the output weight. One file a family, one interface (`interface.py`)."""
from .hyper import HyperHead, matched_rank
from .interface import Condition, Head, HeadUpdate, apply_update
from .static import FrozenHead, LoraHead

__all__ = ["Condition", "FrozenHead", "Head", "HeadUpdate", "HyperHead", "LoraHead", "apply_update", "matched_rank"]
