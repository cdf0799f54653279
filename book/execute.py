"""Run one notebook under papermill; a copy is published only when it is fit to be read.

    notebooks/X.ipynb ─ papermill ─▶ checks ─▶ executed/X.ipynb   (only a good one)
                                         └───▶ failed/X.ipynb     (the copy of a failed run)

papermill writes failed notebooks to the same place as good ones, which would let a wrong page through.
"""

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import nbformat

from chameleon_lite import files
from chameleon_lite.errors import RunFailed

ERROR = re.compile(
    r"^[\w.]*(?:Error|Interrupt): .+", re.M
)  # of those in papermill's messages the last counts


def run_notebook(source: Path, out: Path, profile: str, timeout: int) -> float:
    """Run `source`, at most `timeout` seconds per cell; its seconds. RunFailed for a page unfit to publish.

    The executed copy goes to `out`/executed or, of a failed run, to `out`/failed; what papermill and the
    kernel write to stderr goes to `out`/logs.
    """
    done, failed, log = (out / folder / source.name for folder in ("executed", "failed", "logs"))
    for path in (done, failed, log := log.with_suffix(".log")):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)  # an old copy must not be taken for this run's
    with tempfile.TemporaryDirectory(dir=failed.parent) as folder:
        part = Path(folder) / source.name
        command = [sys.executable, "-m", "papermill", source, part, "--cwd", source.parent]
        command += ["--kernel", "python3", "--no-progress-bar", "--execution-timeout", str(timeout)]
        with open(log, "w") as messages:
            run = subprocess.run([*command, "-r", "profile", profile], stderr=messages)
        book = nbformat.read(part, as_version=4)
        problems = faults(book)
        if run.returncode:
            problems += re.findall(ERROR, log.read_text())[-1:] or [f"papermill ended with {run.returncode}"]
        if problems:
            os.replace(part, failed)
            where = f"executed copy: {failed}; the kernel's messages: {log}"
            raise RunFailed(f"{source.name}: {'; '.join(problems)} ({where})")
    seconds = float(book.metadata.papermill.duration)
    with files.atomic(done) as temporary:
        nbformat.write(presentable(book, profile, seconds), temporary)
    return seconds


def faults(book: nbformat.NotebookNode) -> list[str]:
    """What makes an executed notebook unfit to publish, one line each; an empty list means fit."""
    lines = []
    for number, cell in enumerate(book.cells):
        alt = cell.metadata.get("mystnb", {}).get("image", {}).get("alt")
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            text = "".join(output.get("text") or data.get("text/plain") or "")
            if output.output_type == "error" or "Traceback (most recent call last)" in text:
                lines.append(f"cell {number} shows an error")
            elif output.get("name") == "stderr":
                lines.append(f"cell {number} writes to stderr: {text.strip()[:160]!r}")
            if {"image/png", "image/svg+xml"} & set(data) and not alt:
                lines.append(f"cell {number} draws a figure without metadata mystnb.image.alt")
    return lines


def presentable(book: nbformat.NotebookNode, profile: str, seconds: float) -> nbformat.NotebookNode:
    """The notebook as the site shows it: no widget state, papermill's cell left out, its run time on top."""
    book.metadata.pop("widgets", None)  # its viewer would be loaded from another host
    for cell in book.cells:
        if "injected-parameters" in (tags := cell.metadata.get("tags", [])):
            cell.metadata["tags"] = sorted({*tags, "remove-cell"})
    book.cells[0].source += f" *This page was computed in {seconds:.0f} s (profile = {profile}).*"
    return book
