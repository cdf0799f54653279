"""What a generated update does to the vocabulary, in words one can read.

    states h (M, C) of some texts ─ α (h downᵀ) upᵀ, mean over the states ─▶ shift (G, V) of the logits

An update of a weight has no meaning by itself: what it does to a token depends on the state it is applied to.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from chameleon_lite.app.score import left_padded


@torch.no_grad()
def text_states(model, texts: Sequence[str]) -> Tensor:
    """Final hidden states (M, C) of all real tokens of some texts under the backbone."""
    limit = model.backbone.max_length
    rows = [row[:limit] for row in model.tokenizer(list(texts), add_special_tokens=False)["input_ids"] if row]
    ids, mask = (x.to(model.device) for x in left_padded(rows, model.backbone.pad_id))
    return model.backbone.hidden(ids, mask, (mask.cumsum(1) - 1).clamp_min(0))[mask.bool()]


@torch.no_grad()
def logit_shift(model, condition: Tensor, states: Tensor) -> Tensor:
    """Mean shift of every token's logit (G, V) by the updates for conditions (G, C), over states (M, C)."""
    update = model.update_for(condition)
    z = torch.einsum("mc,grc->gmr", states.float(), update.down.float()).mean(1)  # (G, R), linear in h
    return model.config.scale * torch.einsum("gr,gvr->gv", z, update.up.float())


def extreme_tokens(model, shift: Tensor, count: int = 8) -> tuple[list[tuple], list[tuple]]:
    """From shift (V,) the `count` most raised and most lowered tokens, each with its shift in logits."""
    order = torch.argsort(shift, descending=True, stable=True)
    pick = (order[:count], order.flip(0)[:count])
    return tuple([(token_text(model.tokenizer, int(i)), float(shift[i])) for i in side] for side in pick)


def token_text(tokenizer, token: int) -> str:
    """A token as a reader should see it: spaces and line ends visible, other letters as codes."""
    text = tokenizer.decode([token])
    if not text or "\ufffd" in text:  # part of a character
        return f"#{token}"
    seen = text.replace(" ", "␣").replace("\n", "⏎").replace("\t", "⇥")
    plain = (c if c in "␣⏎⇥" or (c.isprintable() and ord(c) < 0x250) else f"U+{ord(c):04X}" for c in seen)
    return "".join(plain)
