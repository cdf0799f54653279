"""The house rules of book/design.md: who imports whom, how long a file may be, what importing the package costs."""

import ast
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from .counts import CORE, PACKAGES, ROOT, STEPS, counts

FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
OURS = sorted(FILES + [path for folder in ("tests", "book") for path in (ROOT / folder).rglob("*.py")])
FILE_LINES, FUNCTION_LINES = 300, 50
# The whole rule of the core: a file or folder imports only those that stand before it.
ORDER = """errors files settings engine backbones text embed cluster batches backbone lora heads loss states
    conditions processes train train_layers streams chameleon_config chameleon app __main__""".split()
# fast/ imports any of these and is imported by none: engine.py loads it by name. bench may time it directly.
PACKAGE_IMPORTS = {
    "chameleon_lite": {"chameleon_lite"},
    "chameleon_study": {"chameleon_lite", "chameleon_study"},
    "chameleon_bench": {"chameleon_lite", "chameleon_study", "chameleon_bench"},
}
MOST = {"chameleon_lite/*.py": 2_600, "the one sitting": 2_000, "streams": 2_700}
MOST |= {"all Python but tests and streams": 18_570}
HEAVY = "torch transformers datasets umap numpy pandas sklearn scipy matplotlib peft gguf accelerate pydantic".split()
# inside functions only
LATE = {"transformers", "datasets", "umap", "gguf", "matplotlib", "peft", "accelerate", "torchmetrics"}
# files that define classes of transformers, and are themselves imported inside functions only
OF_TRANSFORMERS = {"chameleon_lite/chameleon.py", "chameleon_lite/chameleon_config.py"}
# machine paths of any one person, and words that belong to no reader of this project
FORBIDDEN = re.compile(r"(?<![\w.~])/(?:home|root|tmp|work|Users|mnt)/\w|\.\./shared\b")


def relative(path):
    return str(path.relative_to(ROOT))


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def imported(path: Path, tree: ast.AST) -> set[str]:
    """Modules of ours that a file imports, absolute or relative, at the top or inside functions, as dotted names."""
    package = path.relative_to(ROOT).parent.parts
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            stem = ".".join([*base, *([node.module] if node.module else [])])
            found |= {f"{stem}.{a.name}" for a in node.names}
    return {name for name in found if name.split(".")[0] in PACKAGES}


def room_of(name: str) -> str:
    """The file or folder of the core that a dotted name lies in; "" for the package itself and its public names."""
    part = (name.split(".") + [""])[1]
    return part if (CORE / part).is_dir() or (CORE / f"{part}.py").exists() else ""


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_packages_import_only_those_before_them(path):
    package = path.relative_to(ROOT).parts[0]
    tops = {name.split(".")[0] for name in imported(path, tree_of(path))}
    assert tops <= PACKAGE_IMPORTS[package]


CORE_FILES = [p for p in sorted(CORE.rglob("*.py")) if p != CORE / "__init__.py"]


@pytest.mark.parametrize("path", CORE_FILES, ids=relative)
def test_the_core_imports_only_what_stands_before(path):
    room = room_of(".".join(path.relative_to(ROOT).with_suffix("").parts))
    names = {n for n in imported(path, tree_of(path)) if n.startswith("chameleon_lite")}
    others = {room_of(name) for name in names} - {room, ""}
    allowed = set(ORDER) - {"app", "__main__"} if room == "fast" else set(ORDER[: ORDER.index(room)])
    assert others <= allowed, f"{room} must not import {sorted(others - allowed)}"


def test_the_study_does_not_reach_behind_the_door():
    for path in (ROOT / "chameleon_study").rglob("*.py"):
        assert not any(n.startswith("chameleon_lite.fast") for n in imported(path, tree_of(path))), path


def test_the_reader_of_imports_sees_every_form():
    tree = ast.parse(
        "import chameleon_lite.lora\nfrom ..text import x\nfrom .. import files\nfrom .y import z"
    )
    assert {room_of(n) for n in imported(CORE / "app" / "x.py", tree)} == {"lora", "text", "files", "app"}
    tree = ast.parse(
        "def f():\n    from .heads import HyperHead\n    from chameleon_lite import train, TokenTable"
    )
    assert {room_of(n) for n in imported(CORE / "x.py", tree)} == {"heads", "train", ""}


def test_every_file_of_the_core_has_its_place():
    rooms = {
        p.stem if p.is_file() else p.name
        for p in CORE.iterdir()
        if p.suffix == ".py" or (p.is_dir() and list(p.glob("*.py")))
    }
    assert rooms - {"__init__", "fast"} == set(ORDER)
    assert [name for name in ORDER if name in STEPS] == list(
        STEPS
    )  # the reading order is the order of imports


@pytest.mark.parametrize("what", MOST)
def test_the_package_stays_small(what):
    assert counts()[what] <= MOST[what]


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_heavy_libraries_are_imported_where_they_are_needed(path):
    late = LATE - {"transformers"} if relative(path) in OF_TRANSFORMERS else LATE
    for node in tree_of(path).body:
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) and node.level == 0 else []
        assert not {n.split(".")[0] for n in names} & late, (
            f"line {node.lineno}: import it inside the function"
        )


@pytest.mark.parametrize("path", OURS, ids=relative)
def test_ceilings(path):
    lines = path.read_text().splitlines()
    assert len(lines) <= FILE_LINES
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno - node.lineno + 1 <= FUNCTION_LINES, node.name


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_public_functions_say_what_they_do(path):
    tree = tree_of(path)
    assert path.stat().st_size == 0 or ast.get_docstring(tree), "a file opens with what it is"
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), node.name


def test_no_committed_text_names_a_machine():
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if names.returncode:
        pytest.skip("not a git checkout")
    for name in filter(None, names.stdout.split("\0")):
        path = ROOT / name
        if (
            path.suffix in {".py", ".md", ".yml", ".yaml", ".toml", ".ipynb", ".txt", ".cff", ""}
            and path.is_file()
        ):
            hit = FORBIDDEN.search(
                path.read_text(encoding="utf-8", errors="ignore").replace(FORBIDDEN.pattern, "")
            )
            assert not hit, f"{name}: {hit.group()}"


def test_importing_the_package_prints_nothing_and_loads_nothing_heavy():
    code = f"import sys, chameleon_lite; loaded = [m for m in {HEAVY!r} if m in sys.modules]; assert not loaded, loaded"
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=ROOT, capture_output=True, text=True
    )
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")


def test_public_names_resolve_and_unknown_ones_do_not():
    import chameleon_lite

    # importing a file of that name would put the module in the place of the public name
    assert {p.stem for p in CORE.iterdir()} & set(chameleon_lite.__all__) == {"engine"}
    assert set(chameleon_lite.__all__) <= set(dir(chameleon_lite))
    for name in chameleon_lite.__all__:
        assert getattr(chameleon_lite, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'hyper_hed'"):
        chameleon_lite.hyper_hed  # noqa: B018
