"""ChameleonLLM, re-implemented small: text becomes groups of texts, a group a low-rank update of the LM head.

The method, to be read in this order:

    text → embed → cluster → batches → backbone → lora → heads → loss → states → conditions → train
      → chameleon

Axes, unless a file has others; a row is a document:

    N documents   B rows of a batch   G conditioning groups   T tokens of a row   K clusters
    L all tokens   S all scored tokens   M scored tokens of a step or piece   n of a chunk of M
    V vocabulary, Vp padded    C width   R rank               H heads trained side by side

One training step. Four files explain it: train, batches, heads, loss.

    epoch order ─▶ rows (B,) ─┬▶ source: condition (G, C), group (B,) ─ by_row ─▶ (B, C) ─ factors ─▶ update ┐
                              └▶ data: h (M, C), target (M,) ────────────────────────────────────────────────┤
    AdamW per head ◀─ backward ◀─ (sum of nats) / (scored tokens of the step) ◀─ nats (H,) ◀─ head_losses ───┘

By default `by_row` gives every row a group of its own, G = B; a static head makes one update, G = 1.

"The paper" is "ChameleonLLM: Batch-Aware Dynamic Low-Rank Adaptation via Inference-Time Clusters", Yuksel
2025, arXiv 2502.04315; "released code" and "released scripts" are those published with it. The low-rank
factors are `down` (R, C) and `up` (V, R), the paper's A and B. What is marked "the study's" serves only the
study (a package that compares heads), the benchmarks or the book, and can be skipped. `app/parts.py` and
`app/candidates.py` join these files into a training. `fast/` holds faster forms of some functions, which
`engine.py` chooses; `backbones/` where weights come from; `app/` the method for own texts. Public names are
imported on first use: importing the package loads nothing heavy and prints nothing.
"""

from importlib import import_module

__version__ = "0.1.0"

_NAMES = {  # file -> the public names that live in it
    "text": "Document TokenTable tokenise",
    "embed": "mean_embeddings",
    "cluster": "Clustering fit_clusters",
    "batches": "Arrangement arrange",
    "backbone": "Backbone load_backbone",
    "lora": "add_lora",
    "heads": "Condition Head HeadUpdate HyperHead LoraHead apply_update matched_rank",
    "loss": "HeadWeight head_losses token_losses",
    "states": "ScoredStates hidden_states",
    "train": "Member average evaluate train_heads",
    "streams.memory": "LearnSettings Memory",
    "streams.online": "LayerStates OnlineClusters learn",
    "chameleon": "ChameleonLiteForCausalLM",
    "chameleon_config": "ChameleonLiteConfig",
    "app.export": "export",
    "app.fit": "fit",
    "app.stream": "adapt",
}
_FILE = {name: file for file, names in _NAMES.items() for name in names.split()}
__all__ = sorted([*_FILE, "engine"])


def __getattr__(name: str):
    """A public name, imported from its file on first use (PEP 562)."""
    if name == "engine":
        return import_module(".engine", __name__)
    if name not in _FILE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_FILE[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """The module's own names and the public ones that were not fetched yet."""
    return sorted({*globals(), *__all__})
