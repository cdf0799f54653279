"""ChameleonLLM, re-implemented small: text becomes batches, a batch becomes a low-rank update of the LM head.

Axes, in every file:

    N documents   B rows of a batch   G conditioning groups   T tokens   C width   V vocabulary   K clusters   R rank

The low-rank factors are `down` (R, C) and `up` (V, R), the paper's A and B. Public names are fetched from their
rooms when they are first used, so importing the package loads no heavy library and prints nothing.
"""

from importlib import import_module

__version__ = "0.1.0"

_HOME = {  # public name -> the file it lives in
    "ChameleonLiteConfig": "model.chameleon_config",
    "ChameleonLiteForCausalLM": "model.chameleon",
    "Condition": "model.heads.interface",
    "Head": "model.heads.interface",
    "HeadUpdate": "model.heads.interface",
    "apply_update": "model.heads.interface",
    "Clustering": "data.clusters",
    "Corpus": "data.corpora.documents",
    "Document": "data.corpora.documents",
    "HyperHead": "model.heads.hyper",
    "LoraHead": "model.heads.static",
    "TokenTable": "data.tokens",
    "cluster_batches": "batches",
    "fit_clusters": "data.clusters",
    "load_backbone": "model.backbones",
    "mean_embeddings": "data.embeddings",
    "random_batches": "batches",
    "tokenise": "data.tokens",
}
__all__ = sorted(_HOME)


def __getattr__(name: str):
    """A public name, imported from its room on first use (PEP 562)."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """The module's own names and the public ones that were not fetched yet."""
    return sorted({*globals(), *__all__})
