"""The style of the prose: proselint and the word list book/words.yaml over what a reader reads.

python tests/repository/prose.py      part of `make lint`: one line per finding, and fails if there is one
"""

import ast
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import yaml
from proselint.checks import __register__
from proselint.config import DEFAULT
from proselint.registry import CheckRegistry
from proselint.tools import LintFile

ROOT = Path(__file__).resolve().parents[2]
WORDS = yaml.safe_load((ROOT / "book" / "words.yaml").read_text(encoding="utf-8"))
PAGES = ("*.md", "book/*.md", "notebooks/*.ipynb", "chameleon_*/**/*.py")
# Not prose: the head of a page, fenced code, formulas, addresses, labels. Code in a line is masked for proselint alone.
NO_PROSE = re.compile(
    r"\A---\n.*?^---$|^\s*(`{3,}).*?^\s*\1$|\$\$.*?\$\$|\$[^$\n]+\$|<[^<>\n]+>|\{[\w:-]+\}`[^`]*`"
    r"|\]\([^)\n]*\)|https?://\S+|^\([\w-]+\)=$|^:[\w-]+:.*?$|^:{3,}.*?$",
    re.M | re.S,
)
CODE = re.compile(r"`+[^`\n]+`+")
MASK = "¤"  # no letter, so that no check takes it for a word
SENTENCE = 5  # words; a shorter string of a code cell is a name or a label


def prose(path: Path) -> Iterator[tuple[str, str]]:
    """(place, text) of each piece of prose in a page, a notebook or a module."""
    text = path.read_text(encoding="utf-8")
    name = path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else path.name
    if path.suffix == ".md":
        yield name, text
    elif path.suffix == ".py":
        nodes = (ast.Module, ast.ClassDef, ast.FunctionDef)
        docstrings = (ast.get_docstring(n) for n in ast.walk(ast.parse(text)) if isinstance(n, nodes))
        yield from ((name, docstring) for docstring in docstrings if docstring)
    else:
        for i, cell in enumerate(json.loads(text)["cells"]):
            source, place = "".join(cell["source"]), f"{name} cell {i}"
            if cell["cell_type"] == "markdown":
                yield place, source
            else:
                yield from (
                    (f"{place} (code)", string)
                    for string in strings(source)
                    if len(string.split()) >= SENTENCE
                )


def strings(source: str) -> list[str]:
    """The string literals of a code cell, an f-string's parts joined; lines of the shell are left out."""
    tree = ast.parse(re.sub(r"^(\s*)[%!].*$", r"\1pass", source, flags=re.M))
    joined = [n for n in ast.walk(tree) if isinstance(n, ast.JoinedStr)]
    parts = {id(v) for n in joined for v in n.values}
    found = [
        "".join(getattr(v, "value", "") if isinstance(v, ast.Constant) else "7" for v in n.values)
        for n in joined
    ]
    constants = (n for n in ast.walk(tree) if isinstance(n, ast.Constant) and id(n) not in parts)
    return found + [n.value for n in constants if isinstance(n.value, str)]


def patterns() -> list[tuple[dict, re.Pattern]]:
    """The word list's rules, with the lists put in."""
    lists = {f"{{{name}}}": text for name, text in WORDS["lists"].items()}
    filled = []
    for rule in WORDS["patterns"]:
        text = rule["pattern"]
        for name, choices in lists.items():
            text = text.replace(name, choices)
        filled.append(
            (rule, re.compile(text.replace(" ", "[ \n]"), re.I | re.M))
        )  # lines are broken anywhere
    return filled


def config() -> dict:
    """proselint's own choice of checks, minus those that the word list gives a reason against."""
    off = dict.fromkeys(WORDS["proselint_off"], False)
    return DEFAULT | {"checks": off | DEFAULT["checks"]}  # the first that fits a check counts


def findings(path: Path, rules: list[tuple[dict, re.Pattern]], checks: dict) -> Iterator[str]:
    """One line per finding in a file: where, which words, what instead."""
    for place, text in prose(path):
        text = NO_PROSE.sub(lambda match: re.sub(r"[^\n]+", MASK, match[0]), text)
        words = CODE.sub(MASK, text)
        for rule, pattern in rules:
            if re.match(rule.get("in", ""), place):
                for match in pattern.finditer(text if rule.get("code") else words):
                    yield f"{place}: {match[0]!r}: write {rule['write']}"
        if not place.endswith((".py", "(code)")):  # whose strings hold drawings and tables
            for found in LintFile(place, re.sub(r"^#.*$", rf"\g<0> {MASK}", words, flags=re.M)).lint(checks):
                result = found.check_result
                yield f"{place}, line {found.pos[0]}: {result.check_path}: {result.message}"


def register() -> None:
    """Give proselint its checks, once in a process."""
    if not CheckRegistry().checks:
        CheckRegistry().register_many(__register__)


def everything() -> list[str]:
    """The findings of all pages."""
    register()
    rules, checks = patterns(), config()
    paths = (path for page in PAGES for path in sorted(ROOT.glob(page)))
    return [finding for path in paths for finding in findings(path, rules, checks)]


if __name__ == "__main__":
    lines = everything()
    print(*lines, sep="\n", end="\n" if lines else "")
    sys.exit(bool(lines))
