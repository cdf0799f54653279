"""Proofs about what is scored: padding, the loss taken apart, no model at all, the other mode; the paper's own rows.

`paper_tokens` shows what the paper's tables rest on, from its rows and its tokenizer, without its weights:

    rows ─ GPT-2's tokenizer ─▶ lengths and final tokens ─▶ f, the share of rows without padding
    the same rows ─ padded means of the backbone's embeddings ─ k-means, SEEDS seeds ─▶ batches
    published loss = f · (loss of full rows) + (1 − f) · (loss of padded rows)

The released metric averages the means of batches, so f depends on the clustering. The paper's came from GPT-2's
embeddings; those of the backbone at hand take their place.
"""

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from chameleon_lite import Document, TokenTable, average, tokenise
from chameleon_lite.backbones import gpt2_tokenizer
from chameleon_lite.text import IGNORED

from ...claims.paper import published
from .. import prepare
from ..protocol import protocol_of
from ..states import IGNORED_BY_RELEASED
from .subject import REGIMES, Shown, Subject

ADDED = 0.1  # count given to every token beforehand, so that unseen ones keep a probability
PAPERS = ("wikitext-2", "alpaca")  # how the names of the paper's corpora, and of parts of them, begin
SEEDS = 100  # of k-means
LOSS = "validation_loss"


def padding_share(subject: Subject) -> Shown:
    """Count positions, padding, full rows and tokens of the ignored id 0, in training and validation."""
    material, length = subject.material, subject.settings.tokens.max_length
    numbers: dict[str, float] = {"length": float(length)}
    for split, table in material.tables.items():
        full = material.full(split)
        numbers |= {
            f"{split}_rows": float(len(table)),
            f"{split}_full_rows": float(full.sum()),
            f"{split}_full_share": float(full.double().mean()),
            f"{split}_padding_share_of_positions": 1 - float(table.lengths.sum()) / (len(table) * length),
            f"{split}_tokens_of_ignored_id": float((torch.from_numpy(table.ids) == 0).sum()),
        }
    return numbers, {"padding": 1 - numbers["validation_full_share"]}


def decomposition(subject: Subject) -> Shown:
    """L = f · L_full + (1 − f) · L_pad under the frozen model, LoRA and the hyper-network."""
    numbers, worst = {}, 0.0
    for regime in REGIMES:
        m = subject.trained[regime][2]
        f, loss = m["full_share_weighted"], m["validation_nll"]
        full, padded = m.get("full_nll", 0.0), m.get("padded_nll", 0.0)
        worst = max(worst, abs(loss - (f * full + (1 - f) * padded)))
        numbers |= {f"{regime}_loss": loss, f"{regime}_full_rows": full, f"{regime}_padded_rows": padded}
        numbers[f"{regime}_share_of_loss_from_full_rows"] = f * full / loss if loss else 0.0
    numbers |= {"f": f, "full_rows": m["full_rows"], "largest_error_of_the_identity": worst}
    return numbers, {}


def unigram_nll(train_ids: Tensor, targets: Tensor, vocab: int, added: float = ADDED) -> Tensor:
    """−log of the smoothed share in train_ids (L,) of each target (M,): (M,) nats, float64."""
    counts = torch.bincount(train_ids.long(), minlength=vocab).double() + added  # (V,)
    return -(counts[targets.long()] / counts.sum()).log()


def model_free(subject: Subject) -> Shown:
    """Padding for padded rows, the corpus's token frequencies for the others: the same positions' loss."""
    material = subject.material
    states, full = material.scored["validation"], material.full("validation")
    nll = torch.zeros(len(full), dtype=torch.float64)
    target = torch.zeros(len(full), dtype=torch.int64)
    target[states.counts.bool()] = states.target.cpu()  # one target per row that has one
    train = torch.from_numpy(material.tables["train"].ids)
    nll[full] = unigram_nll(train, target[full], subject.backbone.vocab)
    batches = subject.trained["R1"][1]["validation"].steps()
    return {
        "model_free_loss": float(average(nll, states.counts, "batch", batches)),
        "model_free_loss_row_mean": float(nll.mean()),
        "unigram_nll_of_full_rows": float(nll[full].mean()) if full.any() else 0.0,
        "LoRA_loss": subject.trained["R1"][2]["validation_nll"],
        "hyper_network_loss": subject.trained["R4"][2]["validation_nll"],
        "published_LoRA_loss": published(subject.table, "R1", LOSS),
    }, {}


def call_as_released() -> str:
    """The error of cross-entropy with prompt labels of −100 and 0 as the ignored id, or ""."""
    target = torch.tensor([IGNORED, IGNORED, 3, 5])  # two prompt positions, two response tokens
    try:
        F.cross_entropy(torch.zeros(len(target), 8), target, ignore_index=IGNORED_BY_RELEASED)
    except (IndexError, RuntimeError) as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0].rstrip('.')}"
    return ""


def full_mode(subject: Subject) -> Shown:
    """The call with prompt labels, and how many of the positions that mode "full" averages over are text."""
    error = call_as_released()
    table = subject.material.tables["validation"]
    text = float(table.lengths.sum()) / (len(table) * subject.settings.tokens.max_length)
    return {"fails": float(bool(error)), "text_share_of_positions": text}, {"error": error or "no error"}


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
