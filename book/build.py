"""Build the book: run every notebook, stage a copy of the sources with the executed ones, build it strictly.

    _config.yml _toc.yml book/ results/ ───────────────────────▶ _build/stage ─ jupyter-book -W ─▶ _build/site
    notebooks/*.ipynb ─ papermill ─ checks ─▶ _build/executed ──────▲
                                     └───▶ _build/failed             (the copy of a failed run)

Sources stay free of outputs, and a staged page keeps its path in the repository, so its Colab link is right.
papermill writes failed notebooks to the same place as good ones; only a page fit to be read is published.
Run it as `make book`, or `python book/build.py --help`.
"""

import argparse
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from datetime import date
from functools import partial
from importlib.metadata import distribution
from multiprocessing.pool import ThreadPool
from pathlib import Path

import nbformat
import pandas as pd
import yaml

from chameleon_lite import files
from chameleon_lite.errors import RunFailed, UserError, unknown
from chameleon_study.config import PROFILES
from chameleon_study.provenance import PACKAGES, commit, installed

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "_build"
COPIED = ("_config.yml", "_toc.yml", "book", "results", "benchmarks", *PACKAGES)
WORDS = yaml.safe_load((ROOT / "book" / "build.yaml").read_text(encoding="utf-8"))
# UMAP's compiler refuses to work where it cannot write beside the library nor in the home folder.
QUIET = WORDS["quiet"] | {"NUMBA_CACHE_DIR": str(OUT / "numba")}
# --help describes them; as functions they would show typer's objects.
COMMANDS = ("cli.py", "command.py", "__main__.py")
ERROR = re.compile(r"^[\w.]*(?:Error|Interrupt): .+", re.M)  # in papermill's messages the last is the reason
log = partial(print, flush=True)  # at once also when stdout is a pipe


def toc_notebooks() -> list[Path]:
    """The notebooks of `_toc.yml`, in reading order."""
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
    names = [chapter["file"] for part in toc["parts"] for chapter in part["chapters"]]
    return [ROOT / f"{name}.ipynb" for name in names if name.startswith("notebooks/")]


def execute_all(args: argparse.Namespace) -> None:
    """Run the notebooks the arguments select, two at a time without a GPU; the others keep an earlier copy."""
    from forked import FORK  # beside this file

    notebooks = toc_notebooks()
    chosen = [] if args.pages_only else [n for n in notebooks if args.only in n.stem]
    if not chosen and not args.pages_only:
        raise unknown("notebook", args.only, [n.stem for n in notebooks])
    todo = [n for n in notebooks if n in chosen or not (OUT / "executed" / n.name).exists()]
    cores = os.cpu_count() or 1
    workers = min(2, cores) if args.profile == "smoke" else 1  # a page takes up to 2 GB
    os.environ.setdefault("OMP_NUM_THREADS", str(cores // workers))
    log(f"[book] {len(todo)} of {len(notebooks)} notebooks, {workers} at a time, profile {args.profile}")

    def run(path: Path) -> str:
        """What went wrong, or ""; the others still run: one broken chapter should not hide a second."""
        wrong, took = "", "failed"
        try:
            took = f"{run_notebook(path, OUT, args.profile, args.timeout):.1f} s"
        except RunFailed as error:
            wrong = str(error)
        log(f"[book]   {path.relative_to(ROOT)} {took}")
        return wrong

    FORK.set_forkserver_preload(WORDS["preloaded"])
    with ThreadPool(workers) as pool:
        failures = list(filter(None, pool.map(run, todo, chunksize=1)))
    if failures:
        raise RunFailed("\n".join(failures))


def run_notebook(source: Path, out: Path, profile: str, timeout: int) -> float:
    """Run `source`, at most `timeout` seconds per cell; its seconds. RunFailed for a page unfit to publish.

    The executed copy goes to `out`/executed or, of a failed run, to `out`/failed; what the kernel
    writes to its stderr goes to `out`/logs.
    """
    import papermill
    from forked import Kernel  # beside this file

    done, failed, log = (out / folder / source.name for folder in ("executed", "failed", "logs"))
    for path in (done, failed, log := log.with_suffix(".log")):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)  # an old copy must not be taken for this run's
    how = {"kernel_name": "python3", "progress_bar": False, "execution_timeout": timeout}
    how["resources"] = {"metadata": {"path": str(source.parent)}}  # papermill's cwd is all threads'
    how["kernel_manager_class"] = type("Kernel", (Kernel,), {"output": log})
    with tempfile.TemporaryDirectory(dir=failed.parent) as folder:
        part, reason = Path(folder) / source.name, []
        try:
            papermill.execute_notebook(source, part, {"profile": profile}, **how)
        except Exception as error:
            reason = re.findall(ERROR, f"{type(error).__name__}: {error}")[-1:] or [repr(error)]
        if not part.exists():  # papermill had not begun
            raise RunFailed(f"{source.name}: {reason[0]}")
        book = nbformat.read(part, as_version=4)
        if problems := faults(book) + reason:
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


def machine() -> pd.DataFrame:
    """What the pages were computed on: names and values, without host names or paths."""
    import torch

    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30 if hasattr(os, "sysconf") else 0
    facts = {"date": date.today().isoformat(), "commit": commit()[:12], "CPU cores": str(os.cpu_count())}
    facts |= {"system": f"{platform.system()} {platform.machine()}", "memory": f"{memory:.0f} GiB"}
    facts |= {"GPU": torch.cuda.get_device_name() if torch.cuda.is_available() else "none"}
    facts |= {"Python": platform.python_version()}
    facts |= {name: installed(name, "not installed") for name in WORDS["versions"]}
    return pd.DataFrame(facts.items(), columns=["what", "value"])


def notebook_status(executed: list[Path]) -> pd.DataFrame:
    """One row per executed notebook, from what papermill wrote into it."""
    rows = []
    for path in executed:
        book = nbformat.read(path, as_version=4)
        run, cells = book.metadata.papermill, sum(cell.cell_type == "code" for cell in book.cells)
        profile = run.parameters.get("profile", "–")
        rows.append((path.stem, profile, f"{run.duration:.1f}", cells, run.end_time[:10]))
    return pd.DataFrame(rows, columns=["notebook", "profile", "seconds", "code cells", "run on"])


def stage() -> Path:
    """A fresh `_build/stage` with sources, executed notebooks, MathJax and the status tables; its path."""
    target = OUT / "stage"
    shutil.rmtree(target, ignore_errors=True)
    (target / "notebooks").mkdir(parents=True)
    skip = shutil.ignore_patterns("__pycache__", "*.parquet")
    for source in (ROOT / name for name in COPIED):
        if source.is_dir():
            shutil.copytree(source, target / source.name, ignore=skip)
        elif source.exists():
            shutil.copy2(source, target)
    executed = [shutil.copy2(OUT / "executed" / path.name, target / "notebooks") for path in toc_notebooks()]
    book = target / "book"
    (book / "api_modules.md").write_text(api_page(), encoding="utf-8")
    copy_mathjax(book / "_static" / "mathjax")
    notebook_status(sorted(map(Path, executed))).to_csv(book / "status_notebooks.csv", index=False)
    machine().to_csv(book / "status_machine.csv", index=False)
    return target


def api_page() -> str:
    """Markdown with one heading per folder and one per file, each documented from its docstrings."""
    text, room = [], ()
    paths = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    for path in sorted(paths, key=lambda path: (path.parent, path.name)):
        *folder, _ = parts = path.relative_to(ROOT).with_suffix("").parts
        if path.name in COMMANDS or path.stat().st_size == 0 or parts[1:] == ("__init__",):
            continue
        if folder != room:
            text.append(f"## {'/'.join(room := folder)}/\n")
        text.append(WORDS["module"].format(".".join(parts).removesuffix(".__init__")))
    return "\n".join(text)


def copy_mathjax(target: Path) -> None:
    """The part of the installed offline MathJax that the pages load, so that formulas need no other host."""
    source = distribution("sphinx-mathjax-offline").locate_file("sphinx-mathjax-offline/static/mathjax")
    fonts = "output/chtml/fonts/woff-v2"  # with the script 1.6 of the package's 24 MB
    shutil.copytree(source / fonts, target / fonts)
    shutil.copy2(source / "tex-mml-chtml.js", target)


def build_site(staged: Path) -> Path:
    """jupyter-book over the staged tree; any warning is a failure. The finished site replaces the old one."""
    messages = OUT / "logs" / "jupyter-book.log"
    messages.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-c", "from jupyter_book.cli.main import main; main()", "build", str(staged)]
    command += ["--path-output", str(OUT / "jupyter-book"), "--all", "-W", "-n", "--keep-going"]
    both = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    run = subprocess.run(command, cwd=ROOT, encoding="utf-8", errors="replace", **both)
    messages.write_text(run.stdout, encoding="utf-8")
    if run.returncode:
        lines = run.stdout.splitlines()
        lines = [line for line in lines if "WARNING" in line or "ERROR" in line] or lines[-20:]
        raise RunFailed("\n".join([*lines, f"the book did not build; see {messages}"]))
    with files.atomic(OUT / "site") as site:
        shutil.copytree(OUT / "jupyter-book" / "_build" / "html", site)
    return OUT / "site"


def main() -> int:
    """0 when the site is built, 1 when a run or the build failed, 2 for wrong use."""
    parser = argparse.ArgumentParser(
        description="Run the notebooks and build the book into _build/site.",
        epilog="example: python book/build.py --only 03",
    )
    add = parser.add_argument
    add("--profile", choices=PROFILES, default="smoke", help="size of the runs (default: smoke)")
    add("--only", default="", metavar="PART", help="run only notebooks whose name contains PART")
    add("--pages-only", action="store_true", help="run no notebook that already has an executed copy")
    add("--timeout", type=int, default=600, help="seconds a notebook cell may take (default: 600)")
    args, start = parser.parse_args(), time.monotonic()
    # The profile smoke needs no model hub: a forgotten hub call fails at once, not after retries.
    for name, value in (QUIET | ({"HF_HUB_OFFLINE": "1"} if args.profile == "smoke" else {})).items():
        os.environ.setdefault(name, value)
    try:
        execute_all(args)
        log("[book] building the pages (strictly: any warning is an error), about 10 s")
        site = build_site(stage())
    except UserError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    log(f"[book] done in {time.monotonic() - start:.0f} s: {site.relative_to(ROOT)}/index.html")
    log("[book] read it with: make serve   (or: python3 -m http.server --directory _build/site)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
