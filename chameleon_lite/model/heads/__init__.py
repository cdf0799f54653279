"""Heads: what adapts the output weight. One file a family, one interface (`interface.py`)."""

from .bank import BankHead, FactorBankHead
from .bias import UnigramBias
from .hyper import HyperHead, matched_rank
from .interface import Condition, Head, HeadUpdate, apply_update
from .routed import RoutedHead
from .static import FrozenHead, LoraHead
from .svf import SvfBank

__all__ = [
    "BankHead",
    "Condition",
    "FactorBankHead",
    "FrozenHead",
    "Head",
    "HeadUpdate",
    "HyperHead",
    "LoraHead",
    "RoutedHead",
    "SvfBank",
    "UnigramBias",
    "apply_update",
    "matched_rank",
]
