"""Corpora from the Hugging Face hub, and an answer within a second when it cannot be reached."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from chameleon_lite.app import own_texts
from chameleon_lite.app.corpus import Corpus
from chameleon_lite.app.rows import parsed
from chameleon_lite.backbones.hub import reachable
from chameleon_lite.errors import Unreachable, UserError

INSTEAD = "use a file (--corpus FILE.jsonl), or the corpus docstrings, which needs no network"
NAMES = {"valid": "validation", "val": "validation", "dev": "validation"}  # of splits


def load(repository: str, *, seed: int = 0) -> Corpus:
    """The data set `owner/name` with text, prompt/response or instruction/output columns.

    Its own train, validation and test are used where it has all three; otherwise its rows are split 80/10/10.
    """
    if repository.count("/") != 1:
        raise UserError(f"hub:{repository} is not hub:owner/name")
    rows = [{**row, "split": split} for split, part in fetch(repository).items() for row in part]
    name, source = repository.split("/")[1], f"hub {repository}"
    return own_texts.corpus(name, source, parsed(rows), f"hub:{repository}", seed=seed)


def fetch(repository: str, config: str | None = None, *, instead: str = INSTEAD) -> dict[str, list[dict]]:
    """All rows by split; Unreachable, saying what to do `instead`, without network and cache."""
    online = reachable()
    if not online and not cached(repository):
        raise Unreachable(f"cannot reach the hub and {repository} is not cached: {instead}")
    try:
        import transformers  # noqa: F401  (before datasets, which else prints an import error)
        from datasets import load_dataset
    except ImportError:
        raise UserError(f"reading {repository} needs a library: pip install datasets; or {instead}") from None
    try:
        with nullcontext() if online else _offline():
            loaded = load_dataset(repository, config)
    except (OSError, ValueError, RuntimeError) as error:
        first = str(error).strip().split("\n")[0][:160]
        raise Unreachable(f"cannot load {repository} from the hub ({first}): {instead}") from None
    return {NAMES.get(str(split), str(split)): part.to_list() for split, part in loaded.items()}


def cached(repository: str) -> bool:
    """Whether the hub's caches hold anything of this data set."""
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface")
    hub = Path(os.environ.get("HF_HUB_CACHE") or Path(home, "hub"))
    hub /= f"datasets--{repository.replace('/', '--')}"
    datasets = Path(
        os.environ.get("HF_DATASETS_CACHE") or Path(home, "datasets"), repository.replace("/", "___")
    )
    return any(folder.expanduser().is_dir() for folder in (hub, datasets))


@contextmanager
def _offline() -> Iterator[None]:
    """The hub client's offline switch: without it a cached data set comes after 23 seconds of retries."""
    from huggingface_hub import constants

    before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
