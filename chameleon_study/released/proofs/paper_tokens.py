"""What the paper's tables rest on, from its own rows and its own tokenizer; no weights of its model are needed.

    rows ─ GPT-2's tokenizer ─▶ lengths and final tokens ─▶ f, the share of rows without padding
    the same rows ─ padded means of the backbone's embeddings ─ k-means, CLUSTERINGS seeds ─▶ batches
    published loss = f · (loss of full rows) + (1 − f) · (loss of padded rows)

The released metric averages the means of batches, so f depends on the clustering. The paper's came from GPT-2's
embeddings; those of the backbone at hand take their place.
"""

import pandas as pd
import torch
from torch import Tensor

from chameleon_lite import Document, TokenTable, average, tokenise
from chameleon_lite.backbones import gpt2_tokenizer

from ...claims.paper import published
from .. import prepare
from ..protocol import protocol_of
from ..states import IGNORED_BY_RELEASED
from .scoring import unigram_nll
from .subject import REGIMES, Shown, Subject

PAPERS = ("wikitext-2", "alpaca")  # how the names of the paper's corpora, and of parts of them, begin
SEEDS = 100  # of k-means
LOSS = "validation_loss"


def paper_tokens(subject: Subject) -> Shown | None:
    """Padding, the published losses taken apart, and a predictor without a model, under 100 clusterings.

    None for other corpora, where GPT-2's tokenizer was not fetched, and where every row has padding.
    """
    if not subject.texts.name.startswith(PAPERS):
        return None
    if not gpt2_tokenizer.folder().is_dir():
        subject.say("left out without GPT-2's tokenizer: chameleon-lite fetch gpt2-tokenizer")
        return None
    settings, protocol = subject.settings, protocol_of(subject.settings.protocol)
    documents = prepare.documents_by_split(settings, protocol, subject.texts)
    own = prepare.row_tables(settings, protocol, subject.backbone.tokenizer, documents)["validation"]
    x = prepare.row_vectors(settings, protocol, subject.backbone, own)[0]
    by_name = {d.id: d for d in documents["validation"]}
    parts = {"train": documents["train"], "validation": [by_name[name] for name in own.names]}
    tokenizer, length = gpt2_tokenizer.load_gpt2_tokenizer(), settings.tokens.max_length
    options = {"max_length": length, "prefix_tokens": 1, "min_scored": 0}
    tables = {split: tokenise(map(script_row, part), tokenizer, **options) for split, part in parts.items()}
    table, train = tables["validation"], torch.from_numpy(tables["train"].ids)
    scored, full, nll = without_weights(table, length, train, len(tokenizer))
    if not full.any():
        return None
    number = 2 if own.prefix.max() > 1 else 1  # of the paper's table
    means = over_clusterings({"full_share": full.double(), "model_free": nll}, x, scored, settings)
    f, unigram, lora = means["full_share"].mean(), nll[full].mean(), published(number, "R1", LOSS)
    numbers = {
        "length": length,
        "rows": len(table),
        "full_rows": full.sum(),
        "padded_rows": (scored & ~full).sum(),
        "unscored_rows": (~scored).sum(),  # full ones that end in the ignored id
        "full_share": full[scored].double().mean(),
        "padding_share_of_positions": 1 - table.lengths.sum() / (len(table) * length),
        "tokens_counted": len(train),
        "unigram_nll_of_full_rows": unigram,
        "model_free_loss_row_mean": nll[scored].mean(),
        "model_free_below_published_LoRA": (means["model_free"] < lora).mean(),
    }
    for name, column in means.items():
        what = {"mean": column.mean(), "sd": column.std(), "min": column.min(), "max": column.max()}
        what |= {"low": column.quantile(0.025), "high": column.quantile(0.975)}
        numbers |= {f"{name}_{of}": value for of, value in what.items()}
    for regime in REGIMES:
        loss = numbers[f"{regime}_published"] = published(number, regime, LOSS)
        numbers[f"{regime}_full_rows_if_padded_cost_0"] = loss / f
        numbers[f"{regime}_padded_rows_if_full_cost_0"] = loss / (1 - f)
        numbers[f"{regime}_padded_rows_if_full_cost_unigram"] = (loss - f * unigram) / (1 - f)
    words = {"counted": "test" if number == 1 else "training", "seeds": SEEDS}
    return {name: float(value) for name, value in numbers.items()}, words


def script_row(document: Document) -> Document:
    """What the released scripts tokenise: WikiText's row with its newline, Alpaca's parts one newline apart."""
    prompt = document.prompt.replace("\n\n### ", "\n### ")
    return Document(document.id, prompt + document.text if prompt else document.text + "\n")


def without_weights(table: TokenTable, length: int, train: Tensor, vocab: int) -> tuple[Tensor, ...]:
    """Of rows padded to `length`: which are scored (N,), which of them are full (N,), and nll (N,) without a model.

    A padded row's final position is padding, predicted at no cost; a full row's is a token, predicted by its smoothed
    share in `train` (L,).
    """
    full = torch.from_numpy(table.lengths >= length)
    final = torch.from_numpy(table.ids[table.offsets[1:] - 1]).long()
    scored = ~full | (final != IGNORED_BY_RELEASED)
    full &= scored
    nll = torch.zeros(len(table), dtype=torch.float64)
    nll[full] = unigram_nll(train, final[full], vocab)
    return scored, full, nll


def over_clusterings(values: dict[str, Tensor], x: Tensor, scored: Tensor, settings) -> pd.DataFrame:
    """The released metric's average of each of `values` (N,), a row per clustering of the vectors x (N, C)."""
    rows, size = [], settings.clusters.batch_rows
    for seed in range(SEEDS):
        clustering = prepare.released_clusters(x, max(1, len(x) // size), seed=seed)
        batches = prepare.released_batches(clustering.labels, size, seed=seed)
        batches = prepare.scored_batches(batches, scored)
        rows.append({name: float(average(v, scored, "batch", batches)) for name, v in values.items()})
    return pd.DataFrame(rows)
