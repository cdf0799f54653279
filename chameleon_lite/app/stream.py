"""adapt: texts in, results out, in the input's order, whatever their number.

    list or JSONL ─ windows of rows ─ score.py ─▶ results ─▶ list, or OUT.part line by line, renamed when complete

Memory is one window, or two for each worker that shares the work. An interrupted run leaves OUT.part; with `resume`
whole windows in it are kept, the input's rows they answer are skipped, and the finished file is the same as an
unbroken run's, byte for byte. A hidden file beside it, .OUT.made, says what results were made from.
"""

import hashlib
import json
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from .. import files
from ..errors import DamagedFile, RunFailed, UserError
from .chat import unused_settings
from .files_read import KINDS, kind_of, read_rows, texts_of
from .outputs import claimed, writing
from .rows import Row, parsed
from .score import Adapter
from .workers import Workers, check_device

WINDOW = 512  # rows


@dataclass(frozen=True)
class Summary:
    """A file of results: rows, those of them that failed, scored or new tokens, and losses over all tokens."""

    rows: int
    failed: int
    tokens: int
    loss: float | None = None  # nats per token, adapted
    loss_frozen: float | None = None  # nats per token, the backbone as it is
    first_error: str = ""

    def __str__(self) -> str:
        text = f"{self.rows:,} rows, {self.failed:,} failed"
        text += f" (first: {self.first_error})" if self.first_error else ""
        if self.loss is not None:
            text += f"; {self.tokens:,} scored tokens, {self.loss_frozen:.4f} nats per token frozen, "
            text += f"{self.loss:.4f} adapted ({self.loss - self.loss_frozen:+.4f})"
        return text


@dataclass
class Sent:
    """An adapter as it is sent to other processes: the files of its folder, and `Adapter`'s settings."""

    files: dict[str, bytes]
    device: str | None
    dtype: str | None
    how: dict
    backbone: str | None = None  # its folder, where it is one; else the adapter names it

    @cached_property
    def adapter(self) -> Adapter:
        """The adapter, loaded where and when it is first needed; the backbone comes from that machine."""
        with tempfile.TemporaryDirectory() as folder:
            for name, content in self.files.items():
                (Path(folder) / name).write_bytes(content)
            return Adapter(open_model(folder, self.device, self.dtype, self.backbone), **self.how)


def open_model(model: Any, device: str | None = None, dtype: str | None = None, backbone: str | None = None):
    """A loaded model as it is, or the adapter saved at a path; dtype "auto" is what the machine multiplies fast."""
    if not isinstance(model, str | os.PathLike):
        return model
    from ..backbones.formats import backbone_dtype, device_of
    from ..chameleon import ChameleonLiteForCausalLM

    device = device_of(device)
    kind = backbone_dtype(device) if dtype == "auto" else getattr(torch, dtype) if dtype else None
    return ChameleonLiteForCausalLM.from_pretrained(model, device=device, dtype=kind, backbone=backbone)


def adapt(
    model: Any, texts: Iterable[str | dict], *, window: int = WINDOW, progress: bool = True, **how
) -> list[dict]:
    """Score or continue texts (strings, or objects as in `own_texts.py`); one result per text, in order.

    model: a ChameleonLiteForCausalLM or a saved adapter's folder. how: fields of `score.Adapter`, such as
    new_tokens=20 to continue prompts. Results hold row, id, cluster, distance to its centroid, rows in its group,
    tokens, truncated, and loss and loss_frozen (nats per token) or continuation; a failed row holds `error`. Under a
    static head cluster, distance and rows are still the text's, and change nothing.
    Raises UserError for a folder without an adapter and for a window below 1.
    """
    texts = [texts] if isinstance(texts, str) else texts
    adapter, results = Adapter(open_model(model), **how), []
    with _bar(progress, len(texts) if hasattr(texts, "__len__") else None) as bar:
        for part in windows(parsed(texts, scored=False), window):
            results += adapter(part)
            bar.update(len(part))
    return results


def adapt_file(
    model: Any,
    source: Path | str,
    out: Path | str,
    *,
    window: int = WINDOW,
    resume: bool = False,
    overwrite: bool = False,
    device: str | None = None,
    dtype: str | None = None,
    progress: bool = True,
    workers: int | None = None,
    dask: str | None = None,
    encoding: str | None = None,
    say: Callable[[str], None] = lambda text: None,
    **how,
) -> Summary:
    """`adapt` from a file of rows (see files_read.py) to a JSONL file; JSONL is read in bounded memory.

    `workers` processes of this machine or the workers of the Dask scheduler at `dask` share the windows; `model` is
    an adapter's folder then. Raises UserError for a missing input, an `out` that holds other things than results
    (unless `overwrite`), and where `resume` finds results, complete or not, of other settings, adapters or inputs.
    RunFailed, saying what is kept, where nothing more can be written.
    """
    source = Path(source)
    if not source.is_file() and not source.is_dir():
        raise UserError(f"no file or folder at {source}; give {KINDS}")
    read = partial(read_rows, source, scored=False, encoding=encoding)
    if not (total := sum(1 for _ in read())):
        raise RunFailed(f"{source.name} holds no rows")
    inputs = [source, model] if isinstance(model, str | os.PathLike) else [source]
    with claimed(out, inputs, own=resume or _record(Path(out)).is_file(), overwrite=overwrite) as place:
        sent = _sent(model, device, dtype, how) if workers or dask else None
        adapter = Adapter(open_model(model, "cpu" if sent else device, dtype), **how)
        if sent and Path(name := adapter.model.backbone.name).is_dir():
            sent.backbone = name
        if adapter.new_tokens and (unused := unused_settings(adapter.model.lm)):
            say(f"the model's own settings of generation are not used, continuations are greedy: {unused}")
        part = place.with_name(place.name + ".part")
        key = _key(adapter, how, contents(source, encoding), window)
        if (done := _done(place, part, key) if resume else 0) is None:
            return _summary(place)
        made, record = {"key": key, "rows": done, "bytes": part.stat().st_size if done else 0}, _record(place)
        if not done:
            part.unlink(missing_ok=True)
            files.write_sealed(record, made)
        with Workers(sent or adapter, workers, dask) as crew, _bar(progress, total, done) as bar:
            _run(crew, windows(islice(read(), done, None), window), part, record, made, bar)
        os.replace(part, place)
        return _summary(place)


def _sent(model: Any, device: str | None, dtype: str | None, how: dict) -> Sent:
    """What other processes need; raises UserError for a model without a folder, or one GPU for all of them."""
    if not isinstance(model, str | os.PathLike):
        raise UserError("workers need the adapter's folder: save the model and give its folder")
    from ..backbones.hub import adapter_folder

    check_device(device)
    paths = [path for path in adapter_folder(model).iterdir() if path.is_file()]
    return Sent({path.name: path.read_bytes() for path in paths}, device, dtype, how)


def _run(crew, rows: Iterator[list[Row]], part: Path, record: Path, made: dict, bar: tqdm) -> None:
    """Append the results of windows of rows that are not `made` yet, and keep the record of it, window by window."""
    for given, results in crew.share(_results, rows, ordered=True):
        text = "".join(json.dumps(result, ensure_ascii=False) + "\n" for result in results)
        with writing(part, f"{made['rows']:,} finished rows are kept in it, and --resume goes on from there"):
            with open(part, "ab") as file:
                file.write(text.encode())
            made |= {"rows": made["rows"] + len(given), "bytes": part.stat().st_size}
            files.write_sealed(record, made)
        bar.update(len(given))
    files.write_sealed(record, made | {"sha256": files.sha256(part)})


def _results(common: Adapter | Sent, rows: list[Row]) -> Iterator[list[dict]]:
    yield (common.adapter if isinstance(common, Sent) else common)(rows)


def _bar(progress: bool, total: int | None, done: int = 0) -> tqdm:
    shown = {"desc": "adapting", "unit": "row", "leave": False, "disable": None if progress else True}
    return tqdm(total=total, initial=done, **shown)


def _record(out: Path) -> Path:
    """The file beside results, or a part of them, that says what they were made from and how far they go."""
    out = out.resolve()
    return out.with_name(f".{out.name}.made")


def _done(out: Path, part: Path, key: str) -> int | None:
    """Rows that an unfinished `part`, cut to them, has results for; None: `out` is whole; UserError: other `key`."""
    if not part.exists() and not out.exists():
        return 0
    found = {}
    with suppress(OSError, DamagedFile):
        found = files.read_sealed(_record(out))
    fits = found.get("key") == key
    if part.exists():
        fits = fits and part.stat().st_size >= found["bytes"]
    elif "sha256" in found:
        fits = fits and files.sha256(out) == found["sha256"]
    if not fits:
        same = "with these settings, this adapter and this input: give those again, or leave out --resume"
        raise UserError(f"{part if part.exists() else out} has no record that it was made {same}")
    if part.exists():
        os.truncate(part, found["bytes"])
        return found["rows"]
    return None if "sha256" in found else 0


def _key(adapter: Adapter, how: dict, contained: str, window: int) -> str:
    """Hex name of everything that a result depends on."""
    digest = hashlib.sha256()
    for name, value in sorted(adapter.model.adapter_state().items()):
        digest.update(name.encode() + value.detach().cpu().float().contiguous().numpy().tobytes())
    prompts = adapter.prompts | adapter.writer.facts
    settings = [adapter.model.backbone.hash, prompts, how, window, str(adapter.model.lm.dtype)]
    digest.update(json.dumps(settings, sort_keys=True, default=str).encode() + contained.encode())
    return digest.hexdigest()


def contents(source: Path, encoding: str | None = None) -> str:
    """Ends, names and checksums of the files that an input consists of, one line each, and the encoding named."""
    paths = texts_of(source) if source.is_dir() else [source]
    lines = [f"{kind_of(p)} {p.relative_to(source)} {files.sha256(p)}\n" for p in paths]
    return "".join(lines) + (encoding or "")


def _summary(path: Path) -> Summary:
    """Count a file of results, line by line."""
    counts, nats, first_error = Counter(rows=0, failed=0, tokens=0), Counter(), ""
    with open(path, encoding="utf-8") as file:
        for result in map(json.loads, file):
            counts.update(rows=1, failed="error" in result, tokens=result.get("tokens", 0))
            if "error" in result:
                first_error = first_error or f"row {result['row']}: {result['error']}"
            for name in result.keys() & {"loss", "loss_frozen"}:
                nats[name] += result[name] * result["tokens"]
    losses = {name: x / counts["tokens"] for name, x in nats.items()}
    return Summary(**counts, first_error=first_error, **losses)


def windows(rows: Iterable, size: int) -> Iterator[list]:
    """Runs of `size` items, the last may be shorter; UserError for a size below 1."""
    if size < 1:
        raise UserError("window must be at least 1 row")
    rows = iter(rows)
    while window := list(islice(rows, size)):
        yield window
