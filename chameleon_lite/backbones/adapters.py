"""What an adapter's folder says, checked before any of it is used: a downloaded one may say anything.

    config.json ─ every field in its range ─▶ settings        model.safetensors ─ header ─▶ names and shapes

A rank or a number of clusters is compared with the tensors that lie there before memory is taken for it.
"""

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from ..errors import DamagedFile, UserError
from ..settings import Rank, TokenSettings, validated
from .formats import once

MODEL_TYPE = "chameleon-lite"
Width = Annotated[int, Field(ge=1, le=1 << 16)]
OTHER_FILES = {  # how a file begins that is no safetensors ─▶ what it is
    b"": "empty: fetch it again",
    b"version https://git-lfs": "a Git LFS pointer and not the weights: run git lfs pull, or fetch it again",
    b"\x80": "a pickle, which could run code when it is read: only safetensors are",
    b"PK\x03\x04": "a PyTorch file or a zip, which could run code when it is read: only safetensors are",
}


class Writing(TokenSettings):
    """How texts become tokens (app/chat.py); what adapters of before these fields lack is what was done then."""

    unwritten = {"chat": False, "bos": None, "special": True}
    chat: bool = False  # prompts and answers by the tokenizer's chat template
    # what every text begins with, "": nothing; None: as the tokenizer has it
    bos: str | None = Field(None, max_length=100)
    special: bool = True  # what looks like a special token in a text is that token; false: it is text


class AdapterSettings(BaseModel):
    """The fields of an adapter's configuration; what is no field of it is left alone."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)

    head: Literal["hyper", "lora"] = "hyper"  # the paper's hyper-network, or one pair whatever the condition
    rank: Rank = 4
    scale: float = Field(1.0, gt=0, le=1e6)  # α
    dropout: float = Field(0.5, ge=0, lt=1)  # inside the hyper-network
    hidden: list[Width] = Field([64, 32], min_length=2, max_length=2)  # its two inner widths
    clusters: int = Field(0, ge=0, le=1 << 20)  # stored centroids, K
    condition: Literal["cluster", "centroid", "row"] = "cluster"  # how prompts are grouped, see conditions.py
    lora_rank: int = Field(0, ge=0, le=1 << 14)  # of LoRA in the layers; 0: none
    lora_alpha: float | None = Field(None, gt=0, le=1e6)  # None: the rank
    backbone_name: str = Field("", max_length=1_000, pattern=r"^[^\x00-\x1f]*$")
    backbone_revision: str = Field("", max_length=100, pattern=r"^[\w./-]*$")
    backbone_hash: str = Field("", max_length=100)
    backbone_dtype: Literal["float64", "float32", "bfloat16", "float16"] = "float32"
    vocabulary_hash: str = Field("", max_length=100)
    width: int = Field(0, ge=0, le=1 << 18)  # C
    vocabulary: int = Field(0, ge=0, le=1 << 27)  # V
    prompts: dict = {}  # how texts were cut into tokens
    notes: dict = {}  # what the training measured

    @field_validator("prompts")
    @classmethod
    def _cuts(cls, value: dict) -> dict:
        Writing.model_validate(value)
        return value


def checked(fields: Mapping, where: str = "adapter") -> dict:
    """The fields of an adapter's configuration, with defaults; UserError, naming the first that is wrong."""
    return validated(AdapterSettings, fields, f"{where}: ").model_dump()


def read_settings(folder: Path) -> dict:
    """The checked fields of the config.json in an adapter's folder, the backbone's place found.

    Raises DamagedFile for a file that is no JSON object, UserError for another model's and for wrong fields.
    """
    path = folder / "config.json"
    try:
        content = json.loads(path.read_bytes(), object_pairs_hook=once)
        kind = content.get("model_type")
    except (ValueError, RecursionError, AttributeError) as error:
        raise DamagedFile(f"{path} is damaged: no JSON object ({error}); save or fetch it again") from None
    if kind != MODEL_TYPE:
        raise UserError(f"{folder} is no adapter but of type {kind!r}: make one with chameleon-lite fit")
    fields = checked(content, str(path))
    if absent := [name for name in ("backbone_name", "width", "vocabulary") if not fields[name]]:
        raise DamagedFile(f"{path} is damaged: it lacks {absent[0]}; save or fetch it again")
    if fields["backbone_name"].startswith("."):  # never from the folder one works in, whatever lies there
        fields["backbone_name"] = str((folder / fields["backbone_name"]).resolve())
    return fields


def portable(name: str, folder: Path) -> str:
    """A backbone's folder as an adapter saved in `folder` names it: from the home folder, or from there."""
    place, home = Path(name).expanduser().resolve(), Path(os.path.expanduser("~"))
    if place.is_relative_to(home):
        return f"~/{place.relative_to(home).as_posix()}"
    return f"./{Path(os.path.relpath(place, folder.resolve())).as_posix()}"


@contextmanager
def placed(target: Path, last: str = "config.json") -> Iterator[Path]:
    """Yield a folder for files, all of which go to the folder `target` when the block ends well, `last` last."""
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target, prefix=".part-") as part:
        yield Path(part)
        for path in sorted(Path(part).iterdir(), key=lambda path: path.name == last):
            path.replace(target / path.name)


def check_tensors(path: Path, settings: Mapping, head: Mapping[str, tuple[int, ...]]) -> None:
    """DamagedFile, naming the tensor, unless a file holds what its settings promise; only its header is read.

    head: name ─▶ shape of the head's tensors. A file that is no safetensors is named with what to do.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise UserError(f"{path.parent} is no adapter: no {path.name}, and no other format is read")
    try:
        with safe_open(path, framework="pt") as file:
            found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}
    except SafetensorError:
        with open(path, "rb") as file:
            start = file.read(64)
        what = (what for sign, what in OTHER_FILES.items() if (start.startswith(sign) if sign else not start))
        raise DamagedFile(f"{path} is {next(what, 'cut short or damaged: fetch it again')}") from None
    lora = {name: shape for name, shape in found.items() if name.startswith("lora.")}
    expected = {f"head.{name}": tuple(shape) for name, shape in head.items()} | lora
    if settings["clusters"]:
        expected["centroids"] = (settings["clusters"], settings["width"])
    wrong = {name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name)}
    rank = settings["lora_rank"]
    wrong |= {name for name, shape in lora.items() if rank not in shape}
    if bool(rank) != bool(lora):
        wrong.add("lora")
    if wrong:
        raise DamagedFile(f"{path} does not fit its config.json: {min(wrong)}; save or fetch it again")
