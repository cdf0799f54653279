"""Build the book: run every notebook, stage a copy of the sources with the executed ones, build it strictly.

    _config.yml _toc.yml book/ results/ ──────────────────────────────▶ _build/stage ─ jupyter-book -W ─▶ _build/site
    notebooks/*.ipynb ─ execute.py (papermill, PROFILE) ─▶ _build/executed ─▲

Sources stay free of outputs, and a staged page keeps its path in the repository, so its Colab link is right.
Run it as `make book`, or `python book/build.py --help`.
"""

import argparse
import csv
import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
import time
from datetime import date
from pathlib import Path

import nbformat
import yaml
from execute import parameter_names, run_notebook

from chameleon_lite import files
from chameleon_lite.errors import RunFailed, UserError, unknown
from chameleon_study.config import PROFILES
from chameleon_study.provenance import installed

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "_build"
PACKAGES = ("chameleon_lite", "chameleon_study", "chameleon_bench")
COPIED = ("_config.yml", "_toc.yml", "book", "results", "benchmarks", *PACKAGES)
QUIET = {
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TQDM_DISABLE": "1",
    "JUPYTER_PREFER_ENV_PATH": "1",
    "PYDEVD_DISABLE_FILE_VALIDATION": "1",
    # Idle threads sleep instead of spinning: no slower alone, three times as fast beside another busy process.
    "OMP_WAIT_POLICY": "passive",
}
MATHJAX = ("tex-mml-chtml.js", "output/chtml/fonts/woff-v2")  # 1.6 of the package's 24 MB
SHOWN_VERSIONS = """torch transformers peft accelerate numpy scikit-learn umap-learn datasets
papermill jupyter-book myst-nb sphinx""".split()


def say(text: str) -> None:
    """One line of progress, at once also when stdout is a pipe."""
    print(f"[book] {text}", flush=True)


def toc_notebooks(root: Path = ROOT) -> list[Path]:
    """The notebooks of `_toc.yml`, in reading order; UserError for one that is not there."""
    toc = yaml.safe_load((root / "_toc.yml").read_text())
    chapters = [c for part in toc.get("parts", []) for c in part["chapters"]] + toc.get("chapters", [])
    paths = [root / f"{c['file']}.ipynb" for c in chapters if c.get("file", "").startswith("notebooks/")]
    for path in paths:
        if not path.exists():
            raise UserError(f"_toc.yml names {path.relative_to(root)}, which does not exist")
    return paths


def parse_parameters(pairs: list[str]) -> dict:
    """`NAME=VALUE` pairs to values by YAML's rules, so that 40 is a number and [0, 1] a list."""
    for pair in pairs:
        if "=" not in pair:
            raise UserError(f"--parameter takes NAME=VALUE, not {pair!r}")
    return {name: yaml.safe_load(value) for name, value in (pair.split("=", 1) for pair in pairs)}


def parameters_of(notebooks: list[Path], given: dict) -> dict[Path, dict]:
    """Each notebook's share of the given parameters; UserError for a name that no notebook has."""
    names = {path: parameter_names(path) for path in notebooks}
    known = set().union(*names.values())
    for name in given:
        if name not in known:
            raise unknown("notebook parameter", name, known)
    return {path: {k: v for k, v in given.items() if k in names[path]} for path in notebooks}


def execute_all(args: argparse.Namespace) -> None:
    """Run the notebooks the arguments select; the others keep the copy of an earlier run."""
    notebooks = toc_notebooks()
    wanted = [] if args.pages_only else [n for n in notebooks if args.only in n.stem]
    if not wanted and not args.pages_only:
        raise unknown("notebook", args.only, [n.stem for n in notebooks])
    parameters = parameters_of(notebooks, {"profile": args.profile, **parse_parameters(args.parameter)})
    todo = [n for n in notebooks if n in wanted or not (OUT / "executed" / n.name).exists()]
    say(
        f"{len(todo)} of {len(notebooks)} notebooks to run, profile {args.profile}"
        + (", up to 10 minutes on 2 CPU cores" if len(todo) > 1 and args.profile == "smoke" else "")
    )
    failures = []
    for number, path in enumerate(todo, start=1):
        print(f"[book]   {number}/{len(todo)} {path.relative_to(ROOT)} … ", end="", flush=True)
        try:
            seconds = run_notebook(
                path,
                OUT / "executed" / path.name,
                OUT / "failed" / path.name,
                parameters[path],
                timeout=args.timeout,
                log=OUT / "logs" / f"{path.stem}.log",
            )
            print(f"{seconds:.1f} s", flush=True)
        except RunFailed as error:  # the others still run: one broken chapter should not hide a second
            print("failed", flush=True)
            failures.append(str(error))
    if failures:
        raise RunFailed("\n".join(failures))


def write_csv(path: Path, rows: list[tuple]) -> None:
    """Rows, the first one the header, to a CSV file."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)


def machine() -> list[tuple[str, str]]:
    """What the pages were computed on: (name, value) rows, without host names or paths."""
    import torch

    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30 if hasattr(os, "sysconf") else 0
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    commit = subprocess.run(
        ["git", "rev-parse", "--short=12", "HEAD"], cwd=ROOT, capture_output=True, text=True
    )
    commit = commit.stdout.strip() or os.environ.get("CHAMELEON_LITE_COMMIT", "unknown")
    rows = [
        ("date", date.today().isoformat()),
        ("commit", commit),
        ("CPU cores", str(os.cpu_count())),
        ("system", f"{platform.system()} {platform.machine()}"),
        ("memory", f"{memory:.0f} GiB"),
        ("GPU", device),
        ("Python", platform.python_version()),
    ]
    return rows + [(name, installed(name, "not installed")) for name in SHOWN_VERSIONS]


def notebook_status(executed: list[Path]) -> list[tuple]:
    """A header and one row an executed notebook, from what papermill wrote into it."""
    rows = [("notebook", "profile", "seconds", "code cells", "run on")]
    for path in executed:
        book = nbformat.read(path, as_version=4)
        run = book.metadata.papermill
        cells = sum(cell.cell_type == "code" for cell in book.cells)
        rows.append(
            (path.stem, run.parameters.get("profile", "–"), f"{run.duration:.1f}", cells, run.end_time[:10])
        )
    return rows


def stage() -> Path:
    """A fresh `_build/stage` with sources, executed notebooks, MathJax and the status tables; its path."""
    target = OUT / "stage"
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    skip = shutil.ignore_patterns("__pycache__", "*.parquet")
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, target / name, ignore=skip)
        elif source.exists():
            shutil.copy2(source, target / name)
    (target / "notebooks").mkdir()
    for path in toc_notebooks():
        shutil.copy2(OUT / "executed" / path.name, target / "notebooks" / path.name)
    (target / "book" / "api_modules.md").write_text(api_page(ROOT), encoding="utf-8")
    copy_mathjax(target / "book" / "_static" / "mathjax")
    write_csv(
        target / "book" / "status_notebooks.csv",
        notebook_status(sorted((target / "notebooks").glob("*.ipynb"))),
    )
    write_csv(target / "book" / "status_machine.csv", [("what", "value"), *machine()])
    return target


def api_page(root: Path) -> str:
    """Markdown with one heading per package or folder and one per file, each documented from its docstrings."""
    rooms: dict[str, list[str]] = {}
    for path in sorted(path for package in PACKAGES for path in (root / package).rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        if path.name in ("cli.py", "__main__.py") or path.stat().st_size == 0 or parts[1:] == ("__init__",):
            continue
        rooms.setdefault("/".join(parts[:-1]), []).append(".".join(parts).removesuffix(".__init__"))
    text = []
    for room, modules in rooms.items():
        text.append(f"## {room}/\n")
        for module in modules:
            text.append(
                f"### {module}\n\n```{{eval-rst}}\n.. automodule:: {module}\n"
                "   :members:\n   :exclude-members: model_config\n   :ignore-module-all:\n```\n"
            )
    return "\n".join(text)


def copy_mathjax(target: Path) -> None:
    """The part of the installed offline MathJax that the pages load, so that formulas need no other host."""
    try:
        package = importlib.metadata.distribution("sphinx-mathjax-offline")
    except importlib.metadata.PackageNotFoundError:
        raise UserError('sphinx-mathjax-offline is not installed; run: pip install -e ".[book]"') from None
    source = Path(str(package.locate_file("sphinx-mathjax-offline/static/mathjax")))
    for name in MATHJAX:
        copy = shutil.copytree if (source / name).is_dir() else shutil.copy2
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        copy(source / name, target / name)


def build_site(staged: Path) -> Path:
    """jupyter-book over the staged tree; any warning is a failure. The finished site replaces the old one."""
    log = OUT / "logs" / "jupyter-book.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [
        sys.executable,
        "-c",
        "from jupyter_book.cli.main import main; main()",
        "build",
        str(staged),
        "--path-output",
        str(OUT / "jupyter-book"),
        "--all",
        "-W",
        "-n",
        "--keep-going",
    ]
    run = subprocess.run(command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    log.write_text(run.stdout)
    if run.returncode:
        lines = [line for line in run.stdout.splitlines() if "WARNING" in line or "ERROR" in line]
        raise RunFailed(
            "\n".join([*(lines or run.stdout.splitlines()[-20:]), f"the book did not build; see {log}"])
        )
    with files.atomic(OUT / "site") as site:
        shutil.copytree(OUT / "jupyter-book" / "_build" / "html", site)
    return OUT / "site"


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description="Run the notebooks and build the book into _build/site.",
        epilog="example: python book/build.py --only 03 --parameter 'seeds=[0]'",
    )
    parser.add_argument(
        "--profile", choices=PROFILES, default="smoke", help="size of the runs (default: smoke)"
    )
    parser.add_argument(
        "--only", default="", metavar="PART", help="run only notebooks whose name contains PART"
    )
    parser.add_argument(
        "--pages-only", action="store_true", help="run no notebook that already has an executed copy"
    )
    parser.add_argument(
        "--parameter", action="append", default=[], metavar="NAME=VALUE", help="override a parameter"
    )
    parser.add_argument(
        "--timeout", type=int, default=600, help="seconds a notebook cell may take (default: 600)"
    )
    return parser.parse_args()


def main() -> int:
    """0 when the site stands, 1 when a run or the build failed, 2 for wrong use."""
    args, start = arguments(), time.monotonic()
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    if (
        args.profile == "smoke"
    ):  # smoke needs no model hub; a forgotten hub call fails at once, not after retries
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    try:
        execute_all(args)
        say("building the pages (strictly: any warning is an error), about 10 s")
        site = build_site(stage())
    except UserError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    say(f"done in {time.monotonic() - start:.0f} s: {site.relative_to(ROOT)}/index.html")
    say(
        "read it with: make serve   (or: python3 -m http.server --directory _build/site; search needs a server)"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
