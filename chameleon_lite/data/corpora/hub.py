"""Corpora from the Hugging Face hub, and an answer within a second when it cannot be reached.

Left alone, the hub's client retries for half a minute before it gives up. Here a probe decides first: reachable,
or cached, or an error that says what to run instead. The libraries are imported only after that.
"""

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlparse

from ...errors import Unreachable, UserError
from . import own_texts
from .documents import Corpus

PATIENCE = 0.7  # seconds the probe may take, name look-up included
INSTEAD = "use a file (--corpus FILE.jsonl), or the corpus docstrings, which needs no network"


def load(repository: str, *, seed: int = 0) -> Corpus:
    """The data set `owner/name` with text, prompt/response or instruction/output columns.

    Its own train, validation and test are kept where it has all three; otherwise its rows are split 80/10/10.
    """
    if repository.count("/") != 1:
        raise UserError(f"hub:{repository} is not hub:owner/name")
    by_split = fetch(repository)
    tagged = ({**row, "split": split} for split in by_split for row in by_split[split])
    name, source = repository.split("/")[1], f"hub {repository}"
    return own_texts.corpus(name, source, own_texts.parsed(tagged), f"hub:{repository}", seed=seed)


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
    with _offline(not online):
        try:
            loaded = load_dataset(repository, config)
        except (OSError, ValueError, RuntimeError) as error:
            first = str(error).strip().split("\n")[0][:160]
            raise Unreachable(f"cannot load {repository} from the hub ({first}): {instead}") from None
    names = {"valid": "validation", "val": "validation", "dev": "validation"}
    return {names.get(str(split), str(split)): part.to_list() for split, part in loaded.items()}


def reachable() -> bool:
    """Whether the hub's host takes a connection; False at once under HF_HUB_OFFLINE. Never longer than a second."""
    switches = (os.environ.get(name, "").upper() for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"))
    if any(value in ("1", "ON", "YES", "TRUE") for value in switches):
        return False
    proxy = os.environ.get("HTTPS_PROXY") or os.environ.get("https_proxy")
    address = urlparse(proxy or os.environ.get("HF_ENDPOINT") or "https://huggingface.co")
    answered = threading.Event()
    target = (address.hostname or "", address.port or 443)
    threading.Thread(target=_probe, args=(target, answered), daemon=True).start()
    return answered.wait(PATIENCE)


def cached(repository: str) -> bool:
    """Whether the hub's caches hold anything of this data set."""
    home = Path(
        os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    )
    hub = Path(os.environ.get("HF_HUB_CACHE") or home / "hub").expanduser()
    datasets = Path(os.environ.get("HF_DATASETS_CACHE") or home / "datasets").expanduser()
    found = hub / f"datasets--{repository.replace('/', '--')}", datasets / repository.replace("/", "___")
    return any(folder.is_dir() for folder in found)


def _probe(target: tuple[str, int], answered: threading.Event) -> None:
    try:
        socket.create_connection(target, timeout=PATIENCE).close()
        answered.set()
    except OSError:
        pass  # no name, no route, refused: not reachable, which is the answer


@contextmanager
def _offline(wanted: bool) -> Iterator[None]:
    """The clients' offline switches, which they read from the environment only once, when imported."""
    import datasets.config
    import huggingface_hub.constants

    switches = [(huggingface_hub.constants, "HF_HUB_OFFLINE"), (datasets.config, "HF_HUB_OFFLINE")]
    before = [(module, name, getattr(module, name)) for module, name in switches if hasattr(module, name)]
    try:
        for module, name, value in before:
            setattr(module, name, value or wanted)
        yield
    finally:
        for module, name, value in before:
            setattr(module, name, value)
