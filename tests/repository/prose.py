"""Proselint, and the patterns of book/words.csv, over what people read: README, pages, cells of text. `make lint`.

    python tests/repository/prose.py     a line for each finding; exit code 1 where there is one

Code, formulas, links and directives are no prose and are cut out. Lines are those of the file or of the cell.
"""

import csv
import re
import sys
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import nbformat
from proselint.checks import __register__
from proselint.config import DEFAULT
from proselint.registry import CheckRegistry
from proselint.tools import LintFile

ROOT = Path(__file__).resolve().parents[2]
WORDS = ROOT / "book" / "words.csv"
FOLDERS = (".", "book", "notebooks")
# typography: Sphinx makes quotes, dashes and © of what is typed
CHECKS = DEFAULT | {"checks": DEFAULT["checks"] | {"typography": False}}
NO_PROSE = re.compile(
    r"^(```|~~~).*?^\1[^\n]*$|^:[^\n]*$|`[^`]+`|\$\$.*?\$\$|\$[^$\n]+\$|\{[\w:-]+\}|\]\([^)]*\)|<[^>]*>|https?://\S+",
    re.M | re.S,
)


def prose() -> Iterator[tuple[str, str]]:
    """Name and text of every page, and of every cell of text in a notebook."""
    for path in sorted(path for folder in FOLDERS for path in (ROOT / folder).iterdir()):
        name = path.relative_to(ROOT).as_posix()
        if path.suffix == ".md":
            yield name, path.read_text(encoding="utf-8")
        elif path.suffix == ".ipynb":
            for number, cell in enumerate(nbformat.read(path, as_version=4).cells):
                if cell.cell_type == "markdown":
                    yield f"{name}, cell {number}", cell.source


def findings(name: str, text: str) -> list[str]:
    """What Proselint and the word list find in a text, a line each."""
    numbers = count()  # two pieces of code in a row are no repeated word
    text = NO_PROSE.sub(lambda cut: f"q{next(numbers)}z" + "\n" * cut.group().count("\n"), text)
    text = re.sub(
        r"^$", "¶", text, flags=re.M
    )  # nor the last word before a blank line and the first after it
    found = [
        (result.check_result.span, result.check_result.message)
        for result in LintFile(name, content=text).lint(CHECKS)
    ]
    with open(WORDS, newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            matches = re.finditer(row["pattern"], text, re.M)
            found += [(match.span(), f"better: {row['instead']}") for match in matches]
    lines = []
    for (start, end), message in sorted(found):
        there = " ".join(text[max(0, start - 20) : end + 20].split())
        lines.append(f"{name}, line {text.count(chr(10), 0, start) + 1}: {message} [{there}]")
    return lines


def register() -> None:
    """Proselint's checks, which it does not load by itself."""
    CheckRegistry().register_many(__register__)


if __name__ == "__main__":
    register()
    found = [line for name, text in prose() for line in findings(name, text)]
    sys.exit("\n".join(found) or 0)
