"""The house rules of book/design.md: who imports whom, how long a file may be, what importing the package costs."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "chameleon_lite"
FILES = sorted(PACKAGE.rglob("*.py"))
OURS = sorted(p for folder in ("chameleon_lite", "tests", "book") for p in (ROOT / folder).rglob("*.py"))
FILE_LINES, FUNCTION_LINES = 300, 50
BASE = {"config", "cache", "errors", "ops"}
MAY_IMPORT = {room: BASE - {room} for room in BASE} | {"data": BASE, "model": BASE}
MAY_IMPORT["training"] = BASE | {"data", "model"}
MAY_IMPORT["study"] = MAY_IMPORT["adapt"] = MAY_IMPORT["training"] | {"training"}
MAY_IMPORT["bench"] = MAY_IMPORT["study"] | {"study", "adapt"}
MAY_IMPORT["cli"] = MAY_IMPORT["bench"] | {"bench", "cli_adapt"}
MAY_IMPORT["cli_adapt"] = MAY_IMPORT["bench"] | {"bench"}
HEAVY = (
    "torch",
    "transformers",
    "datasets",
    "umap",
    "numpy",
    "pandas",
    "sklearn",
    "scipy",
    "matplotlib",
    "peft",
    "gguf",
    "accelerate",
    "pydantic",
)
# inside functions only
LATE = {"transformers", "datasets", "umap", "gguf", "matplotlib", "peft", "accelerate", "torchmetrics"}
# files that define classes of transformers, and are themselves imported inside functions only
OF_TRANSFORMERS = {"chameleon_lite/model/chameleon.py", "chameleon_lite/model/chameleon_config.py"}
# machine paths of any one person, and words that belong to no reader of this project
FORBIDDEN = re.compile(r"(?<![\w.~])/(?:home|root|tmp|work|Users|mnt)/\w|\.\./shared\b")


def relative(path):
    return str(path.relative_to(ROOT))


def room_of(path: Path) -> str:
    """The room a file of the package belongs to: its folder's name, or its own at the top."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_rooms(path: Path, tree: ast.AST) -> set[str]:
    """Rooms a file imports from, absolute or relative, at the top or inside functions."""
    package = ["chameleon_lite", *path.relative_to(PACKAGE).parent.parts]
    found = set()
    for node in ast.walk(tree):
        modules = []
        if isinstance(node, ast.Import):
            modules = [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            stem = ".".join([*base, *([node.module] if node.module else [])])
            modules = [f"{stem}.{a.name}" for a in node.names]
        found |= {m.split(".")[1] for m in modules if m.startswith("chameleon_lite.")}
    return found


@pytest.mark.parametrize(
    "path", [p for p in FILES if p.parent != PACKAGE or p.name != "__init__.py"], ids=relative
)
def test_rooms_import_only_from_rooms_before_them(path):
    room = room_of(path)
    others = imported_rooms(path, ast.parse(path.read_text())) - {room}
    assert others <= MAY_IMPORT[room], f"{room} must not import {sorted(others - MAY_IMPORT[room])}"


def test_the_reader_of_imports_sees_every_form():
    tree = ast.parse(
        "import chameleon_lite.model.lora\nfrom ..tokens import x\nfrom ... import ops\n"
        "from ...study import y"
    )
    assert imported_rooms(PACKAGE / "data" / "corpora" / "x.py", tree) == {"model", "data", "ops", "study"}
    tree = ast.parse(
        "def f():\n    from ..model.heads import static\n    from chameleon_lite import training"
    )
    assert imported_rooms(PACKAGE / "data" / "x.py", tree) == {"model", "training"}


def test_every_folder_is_a_known_room():
    rooms = {room_of(p) for p in FILES} - {"__init__", "__main__"}
    assert rooms <= set(MAY_IMPORT)


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_heavy_libraries_are_imported_where_they_are_needed(path):
    late = LATE - {"transformers"} if relative(path) in OF_TRANSFORMERS else LATE
    for node in ast.parse(path.read_text()).body:
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) and node.level == 0 else []
        assert not {n.split(".")[0] for n in names} & late, (
            f"line {node.lineno}: import it inside the function"
        )


@pytest.mark.parametrize("path", OURS, ids=relative)
def test_ceilings(path):
    lines = path.read_text().splitlines()
    assert len(lines) <= FILE_LINES
    for node in ast.walk(ast.parse("\n".join(lines))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno - node.lineno + 1 <= FUNCTION_LINES, node.name


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_public_functions_say_what_they_do(path):
    tree = ast.parse(path.read_text())
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

    assert set(chameleon_lite.__all__) <= set(dir(chameleon_lite))
    for name in chameleon_lite.__all__:
        assert getattr(chameleon_lite, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'hyper_hed'"):
        chameleon_lite.hyper_hed  # noqa: B018
