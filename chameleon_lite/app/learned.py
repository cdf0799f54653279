"""A file of rows scored and learned from, and what was learned kept: stopped anywhere, resumed to the same bytes.

    INPUT ─ batches ─ LearningStream ─▶ results ─▶ OUT.part ─ when complete ─▶ OUT
                          └ every so many batches, and at the end: .OUT.learned     at the end: DIR/learned.safetensors

Both files of a memory are safetensors, with what it was learned on and how in their header. DIR is a `--model` again.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from functools import partial
from itertools import islice
from pathlib import Path

import torch
from tqdm import tqdm

from .. import files
from ..backbone import load_backbone
from ..backbones.adapters import MODEL_TYPE
from ..backbones.formats import backbone_dtype, device_of
from ..errors import DamagedFile, RunFailed, UserError
from ..streams.memory import LearnSettings
from .files_read import KINDS, read_rows
from .learn import LearningStream, LearnSummary
from .outputs import claimed, writing
from .rows import Row
from .stream import contents, open_model, windows

NAME = "learned.safetensors"
SAVED_EVERY = 16  # batches


def learn_file(
    model,
    source: Path | str,
    out: Path | str,
    *,
    save: Path | str | None = None,
    resume: bool = False,
    overwrite: bool = False,
    device: str | None = None,
    dtype: str | None = None,
    progress: bool = True,
    encoding: str | None = None,
    **how,
) -> LearnSummary:
    """Score the rows of a file into a JSONL file, learning from them as they pass, in bounded memory.

    model: a backbone or its name, an adapter or its folder, or the folder of an earlier `save`, which is where learning
    begins then; how: see `opened`. With `resume` an interrupted run goes on, to the same file and state. Raises
    UserError for a missing input and for results of other settings, RunFailed where nothing can be read or written.
    """
    source, marker = Path(source), _marker(Path(out))
    if not source.is_file() and not source.is_dir():
        raise UserError(f"no file or folder at {source}; give {KINDS}")
    read = partial(read_rows, source, scored=False, encoding=encoding)
    if not (total := sum(1 for _ in read())):
        raise RunFailed(f"{source.name} holds no rows")
    inputs = [source, model] if isinstance(model, str | os.PathLike) else [source]
    kept, folder = None if save is None else Path(save), nullcontext()
    if kept is not None:
        folder = claimed(kept, inputs, own=(kept / NAME).is_file(), folder=True, overwrite=overwrite)
    with claimed(out, inputs, own=resume or marker.is_file(), overwrite=overwrite) as place, folder:
        stream, name = opened(model, device=device, dtype=dtype, **how)
        part, key = place.with_name(place.name + ".part"), _key(stream, contents(source, encoding))
        done = _done(stream, place, part, key) if resume else {"rows": 0, "bytes": 0}
        if done is not None:
            if not done["rows"]:
                part.unlink(missing_ok=True)
                marker.unlink(missing_ok=True)
            shown = {"desc": "learning", "unit": "row", "disable": None if progress else True}
            with tqdm(total=total, initial=done["rows"], leave=False, **shown) as bar:
                _run(stream, islice(read(), done["rows"], None), part, marker, {"key": key} | done, bar)
            os.replace(part, place)
        if kept is not None:
            with writing(kept):
                _write(kept / NAME, stream, {"model": name})
        return stream.summary()


def opened(
    model,
    *,
    device: str | None = None,
    dtype: str | None = None,
    memory: str | None = None,
    rate: float | None = None,
    freeze_after: int | None = None,
    **how,
) -> tuple[LearningStream, str]:
    """A stream that begins with nothing or where an earlier one was saved, and the name of the model below it.

    memory, rate and what stands in `how`: see `LearningStream`; what is not given is the saved one's, or the default.
    freeze_after: rows after which nothing more is learned, those before this file included. UserError for a saved
    memory of another kind or on another model.
    """
    given = {"memory": memory, "rate": rate} | how
    given = {name: value for name, value in given.items() if value is not None}
    settings = given.pop("settings", None) or LearnSettings()
    if freeze_after is not None:
        settings = settings.model_copy(update={"freeze_after": freeze_after})
    if not isinstance(model, str | os.PathLike):
        return LearningStream(model, settings=settings, **given), ""
    folder = Path(model).expanduser()
    if not (folder / NAME).is_file():
        return LearningStream(_model(str(model), device, dtype), settings=settings, **given), str(model)
    facts, state = _read(folder / NAME)
    how = facts["how"]
    if other := [f"{name} {value}" for name, value in given.items() if how.get(name, value) != value]:
        raise UserError(f"{folder} was not learned with {other[0]}: leave that out, or begin anew")
    stream = LearningStream(_model(facts["model"], device, dtype), settings=settings, **(how | given))
    if stream.backbone.hash != facts["backbone"]:
        what = "on other weights or in another format"
        raise UserError(f"{folder} was learned {what} than {facts['model']} has here")
    rates = stream.memory.rates
    stream.load_state_dict(state)
    stream.memory.rates = stream.memory.rates if rate is None else rates
    stream.memory.counts[1:] = 0  # skipped and failed: of this file alone
    return stream, facts["model"]


def refuse(learn: bool, learning: dict, still: dict) -> None:
    """UserError where an option was given that goes with --learn only, or one that does not go with it."""
    options, how = (still, "without") if learn else (learning, "with")
    if given := [name for name, value in options.items() if value is not None]:
        raise UserError(f"--{given[0].replace('_', '-')} goes {how} --learn only: leave one out")


def _model(name: str, device: str | None, dtype: str | None):
    """The adapter in a folder, else the backbone of that name."""
    config = Path(name).expanduser() / "config.json"
    with suppress(OSError, ValueError, AttributeError):
        if json.loads(config.read_bytes()).get("model_type") == MODEL_TYPE:
            return open_model(name, device, dtype)
    device = device_of(device)
    kind = backbone_dtype(device) if dtype == "auto" else getattr(torch, dtype or "float32")
    return load_backbone(name, device=device, dtype=kind)


def _run(stream, rows: Iterator[Row], part: Path, marker: Path, done: dict, bar: tqdm) -> None:
    """Append the results of the input's other rows, and keep the state beside them."""
    with writing(part, "results up to the last saved state are kept, and --resume goes on from there"):
        with open(part, "ab") as file:
            for number, window in enumerate(windows(rows, stream.settings.batch_rows), start=1):
                for result in stream(window):
                    file.write((json.dumps(result, ensure_ascii=False) + "\n").encode())
                done |= {"rows": done["rows"] + len(window), "bytes": file.tell()}
                bar.update(len(window))
                if number % SAVED_EVERY == 0:
                    file.flush()
                    _write(marker, stream, done)
        _write(marker, stream, done | {"sha256": files.sha256(part)})


def _marker(out: Path) -> Path:
    """The file beside results, or a part of them, that holds what was learned up to there."""
    out = out.resolve()
    return out.with_name(f".{out.name}.learned")


def _done(stream: LearningStream, out: Path, part: Path, key: str) -> dict | None:
    """Rows and bytes of an unfinished `part`, cut to them; None where `out` is complete; the stream stands there.

    UserError where the saved state, or what lies there, is not of this `key`.
    """
    if not part.exists() and not out.exists():
        return {"rows": 0, "bytes": 0}
    if part.exists() and not _marker(out).exists():  # stopped before the first state was saved
        return {"rows": 0, "bytes": 0}
    facts: dict = {}
    with suppress(OSError, DamagedFile):
        facts, state = _read(_marker(out))
    fits = facts.get("key") == key
    if part.exists():
        fits = fits and part.stat().st_size >= facts["bytes"]
    else:
        fits = fits and files.sha256(out) == facts.get("sha256")
    if not fits:
        same = "with these settings, this model and this input: give those again, or leave out --resume"
        raise UserError(f"{part if part.exists() else out} has no record that it was made {same}")
    stream.load_state_dict(state)
    stream.sums, stream.first_error = facts["sums"], facts["first_error"]
    if not part.exists():
        return None
    os.truncate(part, facts["bytes"])
    return {"rows": facts["rows"], "bytes": facts["bytes"]}


def _write(path: Path, stream: LearningStream, facts: dict) -> None:
    from safetensors.torch import save_file

    facts = facts | {"how": stream.how, "backbone": stream.backbone.hash}
    facts |= {"sums": stream.sums, "first_error": stream.first_error}
    tensors = {name: value.cpu().contiguous() for name, value in stream.state_dict().items()}
    with files.atomic(path) as part:
        save_file(tensors, part, metadata={"facts": json.dumps(facts)})


def _read(path: Path) -> tuple[dict, dict[str, torch.Tensor]]:
    """What `_write` wrote; DamagedFile, naming the file, for anything else."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return json.loads(file.metadata()["facts"]), {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise DamagedFile(f"{path} is damaged: {error}; learn anew") from error


def _key(stream: LearningStream, contained: str) -> str:
    """Hex name of everything that a result depends on."""
    digest = hashlib.sha256()
    tensors = stream.state_dict() | (stream.adapter.adapter_state() if stream.adapter else {})
    for name, value in sorted(tensors.items()):
        digest.update(name.encode() + value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    settings = [stream.how, stream.prompts | stream.writer.facts, stream.settings.model_dump()]
    settings.append(stream.backbone.hash)
    digest.update(json.dumps(settings, sort_keys=True, default=str).encode() + contained.encode())
    return digest.hexdigest()
