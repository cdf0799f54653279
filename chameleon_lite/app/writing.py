"""What `fit` decides about how texts are written: chat template or not, and which token every text begins with.

A model that was trained with a first token predicts worse without it, and an adapter would learn to make up for that:
"helped" would be true of the missing token. So a first token that lowers the frozen model's own loss on training texts
is put before every text, frozen or adapted, and stays with the adapter.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress

import numpy as np
import torch

from ..backbone import Backbone
from ..backbones.adapters import Writing
from ..backbones.formats import opening
from ..errors import UserError
from ..loss import HeadWeight, token_losses
from ..settings import TokenSettings
from ..states import ScoredStates, hidden_rows
from ..text import Document, TokenTable, tokenise
from .chat import Writer, template_of
from .corpus import Corpus
from .fit_settings import FitSettings

# that a first token is measured on, at most, and no more than a tenth of what is learnt
TEXTS, TOKENS = 64, 8_000
WORTH = 0.002  # nats per token that it must save, and twice its standard error
WORLD = "<|endoftext|>"  # in many vocabularies, and often neither the tokenizer's first token nor its last


def decided(corpus: Corpus, backbone: Backbone, settings: FitSettings, say: Callable[[str], None]) -> Writer:
    """The writer of a fit, by its settings and, where those are "auto", by the texts and the model; `say` says it.

    Raises UserError for a chat template that is needed and absent, and for a first token that no model has.
    """
    tokenizer, prompts = backbone.tokenizer, any(d.prompt for d in corpus.splits["train"])
    chat = settings.chat == "on"
    with nullcontext() if prompts else suppress(UserError):  # plain texts do without one of several templates
        chat = chat or settings.chat == "auto" and bool(template_of(tokenizer))
    writer = Writer(tokenizer, Writing(chat=chat, special=settings.special))
    if chat and prompts:
        end = writer.end.strip() or "their end"
        say(f"answers are learnt after the model's chat template, up to {end!r}")
    if settings.bos == "off":
        return _begun(writer, "")
    if opening(tokenizer):
        say(f"every text begins with {tokenizer.bos_token!r}, as the tokenizer has it")
        return writer
    tokens = [tokenizer.bos_token, tokenizer.eos_token, WORLD if WORLD in tokenizer.get_vocab() else None]
    tokens = list(dict.fromkeys(filter(None, tokens)))
    if settings.bos == "on":
        if not tokens:
            raise UserError("the tokenizer has no token to begin a text with: choose --bos off")
        say(f"every text begins with {tokens[0]!r}")
        return _begun(writer, tokens[0])
    most = min(TOKENS, (settings.max_train_tokens or 10 * TOKENS) // 10)
    gains = gains_of(tokens, corpus.splits["train"], backbone, writer, settings.tokens, most)
    best = max(gains, key=lambda token: gains[token][0], default="")
    if not best or gains[best][0] < max(WORTH, 2 * gains[best][1]):
        return _begun(writer, "")
    saved = f"{gains[best][0]:.4f} nats per token of the model as it is"
    say(f"every text begins with {best!r}, which saves {saved}, measured on training texts")
    return _begun(writer, best)


def _begun(writer: Writer, token: str) -> Writer:
    return Writer(writer.tokenizer, writer.how.model_copy(update={"bos": token}))


def gains_of(
    tokens: Sequence[str],
    documents: Sequence[Document],
    backbone: Backbone,
    writer: Writer,
    cuts: TokenSettings,
    most: int = TOKENS,
) -> dict[str, tuple[float, float]]:
    """First token ─▶ nats per token that it saves the frozen model on a few documents, and the standard error.

    `most`: scored tokens at most, but one document. {} where no two documents can be scored: the fit itself will say.
    """
    few = [documents[i] for i in np.linspace(0, len(documents) - 1, min(TEXTS, len(documents))).astype(int)]
    longest, sums, gains = min(cuts.max_length, backbone.max_length), {}, {}
    try:
        for first in ("", *tokens):
            begun, length = _begun(writer, first), longest - (not first)  # the same tokens are scored
            written = [begun.document(document) for document in few]
            table = tokenise(written, begun, **cuts.model_dump() | {"max_length": length})
            table = table.take(np.flatnonzero(np.cumsum(table.n_scored) <= max(most, table.n_scored[0])))
            sums[first] = nats_of(backbone, table)
    except UserError:
        return {}
    counts = table.n_scored
    for token in tokens if len(counts) > 1 else ():
        saved = sums[""] - sums[token]
        gain = saved.sum() / counts.sum()
        gains[token] = float(gain), float(np.sqrt(np.square(saved - gain * counts).sum()) / counts.sum())
    return gains


@torch.no_grad()
def nats_of(backbone: Backbone, table: TokenTable) -> np.ndarray:
    """Nats (N,) of the backbone as it is, summed over each document's scored tokens."""
    order = np.argsort(table.lengths, kind="stable")
    table = table.take(order)
    data = ScoredStates(table, hidden_rows(backbone, table, np.arange(len(table))), backbone.device)
    h, target, _ = data.batch(torch.arange(len(table)))
    losses = token_losses(h, target, HeadWeight(backbone.head.weight, backbone.head.bias), [None], [None])[0]
    lengths = torch.from_numpy(table.n_scored)
    sums = torch.segment_reduce(losses.double().cpu(), "sum", lengths=lengths, axis=0)
    return sums.numpy()[np.argsort(order)]
