"""Run one notebook under papermill; a copy is published only when it is fit to be read.

    notebooks/X.ipynb ─ papermill ─▶ checks ─▶ executed/X.ipynb   (only a good one)
                                         └───▶ failed/X.ipynb     (the copy of a failed run)

papermill writes failed notebooks to the same place as good ones, which would let a wrong page through.
"""

import ast
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import nbformat

from chameleon_lite import files
from chameleon_lite.errors import RunFailed


def parameter_names(path: Path) -> set[str]:
    """Names assigned in the notebook's `parameters` cell."""
    cells = nbformat.read(path, as_version=4).cells
    (cell,) = (c for c in cells if "parameters" in c.metadata.get("tags", []))
    return {target.id for statement in ast.parse(cell.source).body for target in statement.targets}


def run_notebook(source: Path, out: Path, parameters: dict, timeout: int) -> float:
    """Run `source`, at most `timeout` seconds per cell; its seconds. RunFailed for a page unfit to publish.

    The executed copy goes to `out`/executed or, of a failed run, to `out`/failed; the kernel's stderr goes to
    `out`/logs. `parameters` must be names of the notebook: papermill would accept any.
    """
    done, failed, log = (out / folder / source.name for folder in ("executed", "failed", "logs"))
    for path in (done, failed, log := log.with_suffix(".log")):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)  # an old copy must not be taken for this run's
    with tempfile.TemporaryDirectory(dir=failed.parent) as folder:
        part = Path(folder) / source.name
        with stderr_to(log):
            problem = execute(source, part, parameters, timeout)
        book = nbformat.read(part, as_version=4)
        if problem := problem or "; ".join(faults(book)):
            os.replace(part, failed)
            raise RunFailed(
                f"{source.name}: {problem} (executed copy: {failed}; the kernel's messages: {log})"
            )
    seconds = float(book.metadata.papermill.duration)
    with files.atomic(done) as temporary:
        nbformat.write(presentable(book, parameters, seconds), temporary)
    return seconds


def execute(source: Path, part: Path, parameters: dict, timeout: int) -> str:
    """Run `source` into `part`; "" or what went wrong."""
    import papermill
    from nbclient.exceptions import CellTimeoutError, DeadKernelError

    options = {"kernel_name": "python3", "cwd": str(source.parent), "progress_bar": False}
    try:
        papermill.execute_notebook(str(source), str(part), parameters, execution_timeout=timeout, **options)
    except papermill.PapermillExecutionError as error:
        return f"cell {error.cell_index}: {error.ename}: {error.evalue}"
    except CellTimeoutError:
        return f"a cell ran longer than {timeout} s"
    except DeadKernelError:
        return "the kernel died (out of memory?)"
    return ""


def faults(book: nbformat.NotebookNode) -> list[str]:
    """What makes an executed notebook unfit to publish, one line each; an empty list means fit."""
    lines = ["papermill marked the run as failed"] * bool(book.metadata.get("papermill", {}).get("exception"))
    for number, cell in enumerate(book.cells):
        alt = cell.metadata.get("mystnb", {}).get("image", {}).get("alt")
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            text = "".join(output.get("text") or data.get("text/plain") or "")
            if output.output_type == "error" or "Traceback (most recent call last)" in text:
                lines.append(f"cell {number} shows an error")
            elif output.get("name") == "stderr":
                lines.append(f"cell {number} writes to stderr: {text.strip()[:160]!r}")
            if "image/png" in data and not alt:
                lines.append(f"cell {number} draws a figure without metadata mystnb.image.alt")
    return lines


def presentable(book: nbformat.NotebookNode, parameters: dict, seconds: float) -> nbformat.NotebookNode:
    """The executed notebook as the site shows it: no widget state, injected cell left out, its run time on top."""
    book.metadata.pop("widgets", None)  # its viewer would be loaded from another host
    for cell in book.cells:
        if "injected-parameters" in (tags := cell.metadata.get("tags", [])):  # papermill's cell
            cell.metadata["tags"] = sorted({*tags, "remove-cell"})
    given = ", ".join(f"{name} = {value}" for name, value in parameters.items())
    book.cells[0].source += f"\n\n*This page was computed in {seconds:.0f} s ({given}).*"
    return book


@contextmanager
def stderr_to(log: Path) -> Iterator[None]:
    """Send file descriptor 2 of this process and of the kernels it starts to `log`."""
    sys.stderr.flush()
    terminal = os.dup(2)
    try:
        with open(log, "w") as file:
            os.dup2(file.fileno(), 2)
            yield
    finally:
        sys.stderr.flush()
        os.dup2(terminal, 2)
        os.close(terminal)
