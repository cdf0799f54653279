"""How large the project's Python is: physical lines by package, of the one sitting, and its longest pieces.

    python tests/repository/counts.py        or: make count

Tests are not counted, nor notebooks. What learns from streams is counted apart. A file that does not exist counts 0.
"""

import ast
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("chameleon_lite", "chameleon_study", "chameleon_bench")
CORE = ROOT / "chameleon_lite"
STEPS = ("text", "embed", "cluster", "batches", "backbone", "lora")
STEPS += ("heads", "loss", "states", "conditions", "train", "chameleon")
ONE_SITTING = tuple(CORE / f"{step}.py" for step in STEPS)  # what a newcomer reads, in this order
STREAMS = (CORE / "streams", CORE / "app" / "learn.py", CORE / "app" / "learned.py")
STREAMS += (ROOT / "chameleon_study" / "streams",)


class Piece(NamedTuple):
    """A file or function and its physical lines."""

    lines: int
    name: str


def length(path: Path) -> int:
    """Physical lines of a file; 0 if it does not exist."""
    return len(path.read_text(encoding="utf-8").splitlines()) if path.is_file() else 0


def lines_of(*paths: Path) -> int:
    """Lines of files, and of every Python file below folders."""
    return sum(length(p) for path in paths for p in (sorted(path.rglob("*.py")) if path.is_dir() else [path]))


def sources() -> list[Path]:
    """Every Python file of the project but the tests': the packages, the book's tools, what lies beside them."""
    top = [
        p for p in ROOT.iterdir() if p.is_dir() and p.name[0] not in "._" and p.name not in ("tests", "runs")
    ]
    return sorted([*ROOT.glob("*.py"), *(p for folder in top for p in folder.rglob("*.py"))])


def longest_files(paths: list[Path], most: int = 1) -> list[Piece]:
    """The longest files, longest first."""
    return sorted((Piece(length(p), str(p.relative_to(ROOT))) for p in paths), reverse=True)[:most]


def longest_functions(paths: list[Path], most: int = 1) -> list[Piece]:
    """The longest functions and methods, longest first; decorators are not counted."""
    return sorted(
        (
            Piece(node.end_lineno - node.lineno + 1, f"{path.relative_to(ROOT)}: {node.name}")
            for path in paths
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        ),
        reverse=True,
    )[:most]


def counts() -> dict[str, int]:
    """Lines by what they belong to."""
    out = {f"{name}/": lines_of(ROOT / name) for name in PACKAGES}
    for folder in sorted(p for p in CORE.iterdir() if p.is_dir() and any(p.rglob("*.py"))):
        out[f"chameleon_lite/{folder.name}/"] = lines_of(folder)
    out["chameleon_lite/*.py"] = lines_of(*CORE.glob("*.py"))
    out["the one sitting"] = lines_of(*ONE_SITTING)
    out["streams"] = lines_of(*STREAMS)
    out["all Python but tests and streams"] = lines_of(*sources()) - out["streams"]
    return out


def main() -> None:
    """Print the table."""
    for name, lines in counts().items():
        print(f"{lines:>7,}  {name}")
    print("the one sitting: " + ", ".join(f"{path.stem} {length(path)}" for path in ONE_SITTING))
    for kind, pieces in (("file", longest_files(sources())), ("function", longest_functions(sources()))):
        for piece in pieces:
            print(f"longest {kind}: {piece.lines} lines, {piece.name}")


if __name__ == "__main__":
    main()
