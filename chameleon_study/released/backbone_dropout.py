"""The backbone's own dropout, switched on: what a training loop does that calls `train()` on a frozen model.

GPT-2 has Dropout modules at 0.1 (embeddings, attention, residual). Llama-like models keep one number per attention
module, `attention_dropout`, and most ship with 0: then it is set, and the record holds that.
"""

from torch import nn

GPT2_DROPOUT = 0.1  # what the released scripts had live, by GPT-2's own configuration


def live_dropout(lm: nn.Module, value: float = GPT2_DROPOUT) -> dict:
    """Give `lm.train()` an effect; returns the configured and the set value, for the record.

    `applies` is False where the architecture has no dropout at all: then there is no such control for it.
    """
    modules = [m for m in lm.modules() if isinstance(m, nn.Dropout) and m.p > 0]
    if modules:
        return {"applies": True, "configured": max(m.p for m in modules), "set": None, "sites": len(modules)}
    sites = [m for m in lm.modules() if isinstance(getattr(m, "attention_dropout", None), int | float)]
    configured = max((float(m.attention_dropout) for m in sites), default=0.0)
    if sites and not configured:
        for module in sites:
            module.attention_dropout = value
    return {
        "applies": bool(sites),
        "configured": configured,
        "set": value if sites and not configured else None,
        "sites": len(sites),
    }
