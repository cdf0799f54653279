"""adapt: texts in, results out, in the input's order, whatever their number.

    list or JSONL ─ windows of rows ─ score.py ─▶ results ─▶ list, or OUT.part line by line, renamed when complete

Memory is one window, or two for each worker that shares the work. An interrupted run leaves OUT.part; with `resume`
whole windows in it are kept, the input's rows they answer are skipped, and the finished file is the same as an
unbroken run's, byte for byte.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from .. import files
from ..errors import UserError
from .own_texts import Row, jsonl_rows, parse, windows
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
            text += (
                f"; {self.tokens:,} scored tokens, {self.loss_frozen:.4f} nats per token frozen, "
                f"{self.loss:.4f} adapted ({self.loss - self.loss_frozen:+.4f})"
            )
        return text


@dataclass
class Sent:
    """An adapter as it is sent to other processes: the files of its folder, and `Adapter`'s settings."""

    files: dict[str, bytes]
    device: str | None
    dtype: str | None
    how: dict

    @cached_property
    def adapter(self) -> Adapter:
        """The adapter, loaded where and when it is first needed; the backbone comes from that machine."""
        with tempfile.TemporaryDirectory() as folder:
            for name, content in self.files.items():
                (Path(folder) / name).write_bytes(content)
            return Adapter(open_model(folder, self.device, self.dtype), **self.how)


def open_model(model: Any, device: str | None = None, dtype: str | None = None):
    """A loaded model as it is, or the adapter saved at a path; dtype "auto" is what the machine multiplies fast."""
    if not isinstance(model, str | os.PathLike):
        return model
    from ..backbones.formats import backbone_dtype
    from ..chameleon import ChameleonLiteForCausalLM

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    kind = backbone_dtype(device) if dtype == "auto" else getattr(torch, dtype) if dtype else None
    return ChameleonLiteForCausalLM.from_pretrained(model, device=device, dtype=kind)


def adapt(
    model: Any, texts: Iterable[str | dict], *, window: int = WINDOW, progress: bool = True, **how
) -> list[dict]:
    """Score or continue texts (strings, or objects as in `own_texts.py`); one result per text, in order.

    model: a ChameleonLiteForCausalLM or a saved adapter's folder. how: fields of `score.Adapter`, such as
    new_tokens=20 to continue prompts. Results hold row, id, cluster, distance to its centroid, rows in its group,
    tokens, truncated, and loss and loss_frozen (nats per token) or continuation; a failed row holds `error`.
    Raises UserError for a folder without an adapter and for a window below 1.
    """
    texts = [texts] if isinstance(texts, str) else texts
    adapter, results = Adapter(open_model(model), **how), []
    rows = (parse(text, number) for number, text in enumerate(texts, start=1))
    with _bar(progress, total=len(texts) if hasattr(texts, "__len__") else None, unit="row") as bar:
        for part in windows(rows, _size(window)):
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
    device: str | None = None,
    dtype: str | None = None,
    progress: bool = True,
    workers: int | None = None,
    dask: str | None = None,
    **how,
) -> Summary:
    """`adapt` from one JSONL file to another, in bounded memory.

    `workers` processes of this machine or the workers of the Dask scheduler at `dask` share the windows; `model` is
    an adapter's folder then. Raises UserError for a missing input, and where `resume` finds a part written with other
    settings, another adapter or another input. With `resume` a complete `out` is left as it is.
    """
    source, out = Path(source), Path(out)
    if not source.is_file():
        raise UserError(f"no file at {source}; give a .jsonl file with one object or string per line")
    part, marker = out.with_name(out.name + ".part"), out.with_name(out.name + ".part.json")
    if resume and out.is_file() and not part.is_file():
        return _summary(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    sent = _sent(model, device, dtype, how) if workers or dask else None
    adapter = Adapter(open_model(model, "cpu" if sent else device, dtype), **how)
    done = _prepare(part, marker, _key(adapter, source, _size(window)), window, resume)
    with Workers(sent or adapter, workers, dask) as crew:
        _run(crew, source, part, done, window, progress)
    os.replace(part, out)
    marker.unlink(missing_ok=True)
    return _summary(out)


def _sent(model: Any, device: str | None, dtype: str | None, how: dict) -> Sent:
    """What other processes need; raises UserError for a model without a folder, or one GPU for all of them."""
    if not isinstance(model, str | os.PathLike):
        raise UserError(
            "workers need the adapter's folder: save the model with save_pretrained and give that"
        )
    from ..backbones.hub import adapter_folder

    check_device(device)
    paths = [path for path in adapter_folder(model).iterdir() if path.is_file()]
    return Sent({path.name: path.read_bytes() for path in paths}, device, dtype, how)


def _run(crew: Workers, source: Path, part: Path, done: int, window: int, progress: bool) -> None:
    """Append the results of the input's rows from `done` on, a window at a time."""
    bar = _bar(progress, total=source.stat().st_size, unit="B", unit_scale=True)
    with bar, open(part, "a", encoding="utf-8", newline="\n") as file:
        for rows, results in crew.share(_results, windows(jsonl_rows(source, done), window), ordered=True):
            file.write("".join(json.dumps(result, ensure_ascii=False) + "\n" for result in results))
            file.flush()
            bar.update(rows[-1][1] - bar.n)


def _results(common: Adapter | Sent, rows: list[tuple[Row, int]]) -> Iterator[list[dict]]:
    adapter = common.adapter if isinstance(common, Sent) else common
    yield adapter([row for row, _ in rows])


def _bar(progress: bool, **options) -> tqdm:
    return tqdm(desc="adapting", leave=False, disable=None if progress else True, **options)


def _prepare(part: Path, marker: Path, key: str, window: int, resume: bool) -> int:
    """Cut an unfinished part to whole windows, or start a new one; returns how many rows it has results for."""
    if not (resume and part.is_file()):
        part.write_bytes(b"")
        with files.atomic(marker) as new:
            new.write_text(json.dumps({"key": key}))
        return 0
    if not marker.is_file() or json.loads(marker.read_text())["key"] != key:
        raise UserError(
            f"{part} was written with other settings, another adapter or another input: give those again, "
            "or leave out --resume to start anew"
        )
    rows = size = whole_rows = whole_size = 0
    with open(part, "r+b") as file:
        for line in file:
            rows, size = rows + line.endswith(b"\n"), size + len(line)
            if line.endswith(b"\n") and rows % window == 0:
                whole_rows, whole_size = rows, size
        file.truncate(whole_size)
    return whole_rows


def _key(adapter: Adapter, source: Path, window: int) -> str:
    """Hex name of everything that a result depends on."""
    digest = hashlib.sha256()
    for name, value in sorted(adapter.model.adapter_state().items()):
        digest.update(name.encode() + value.detach().cpu().float().contiguous().numpy().tobytes())
    how = {k: v for k, v in vars(adapter).items() if k in Adapter.__dataclass_fields__ and k != "model"}
    settings = [adapter.model.backbone.hash, adapter.prompts, how, window, str(adapter.model.lm.dtype)]
    digest.update(json.dumps(settings, sort_keys=True, default=str).encode())
    digest.update(files.sha256(source).encode())
    return digest.hexdigest()


def _summary(path: Path) -> Summary:
    """Count a file of results, line by line."""
    rows = failed = tokens = 0
    nats, first_error = {}, ""
    with open(path, encoding="utf-8") as file:
        for result in map(json.loads, file):
            rows += 1
            if "error" in result:
                failed += 1
                first_error = first_error or f"line {result['row']}: {result['error']}"
                continue
            tokens += result["tokens"]
            for name in result.keys() & {"loss", "loss_frozen"}:
                nats[name] = nats.get(name, 0.0) + result[name] * result["tokens"]
    return Summary(
        rows, failed, tokens, first_error=first_error, **{name: x / tokens for name, x in nats.items()}
    )


def _size(window: int) -> int:
    if window < 1:
        raise UserError("window must be at least 1 row")
    return window
