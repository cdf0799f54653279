"""A docstring becomes its paragraphs of English prose: no signatures, lists, tables, code or boilerplate."""

import re
import textwrap
from importlib.resources import files

import yaml

BLANK = re.compile(r"\n[ \t]*\n")
UNDERLINE = re.compile(r"\s*([-=~*^#])\1{2,}\s*")
GOOGLE_HEADER = re.compile(r"[A-Za-z][\w ]{2,24}:\s*")
CODE = (">>>", "... ", ".. ", "In [", "$ ", "@", "#")
LIST = ("|", "+-", "- ", "* ", ":param", ":type", ":return", ":raise")
ENTRY = re.compile(r"\s*[`*]{0,2}[\w.*, `\[\]]{1,60}\s?(\([^)]*\))?\s?:(\s|$)")  # "name (type): …"
NUMBERED = re.compile(r"\s*(\(?[0-9a-z]{1,2}[.)]|\[\w+\]_?)\s")
PLAIN_WORD = re.compile(r"[A-Za-z][a-z']+(?=[\s,.;:)!?]|$)")
LINK = re.compile(r"`([^`<]+?)\s*<[^`>]+>`_{1,2}")  # `text <address>`_ ▶ text
ROLE = re.compile(r":(?:[\w+]+:)*[\w+-]+:`~?([^`<]*?)(?:\s*<[^`>]*>)?`")  # :func:`~numpy.mean` ▶ `numpy.mean`
_LISTS = yaml.safe_load((files(__package__) / "prose.yaml").read_text(encoding="utf-8"))
ANY = {name: re.compile("|".join(patterns), re.I) for name, patterns in _LISTS.items()}
SHORTEST = 60  # characters


def prose(docstring: str) -> list[str]:
    """The prose paragraphs of a cleaned docstring, in order, each on one line."""
    paragraphs = []
    section = Section()
    for block in BLANK.split(docstring):
        lines = section.enter(block.split("\n"))
        if lines and not section.listing and not _set_apart(lines):
            text = plain(" ".join(" ".join(lines).split()))
            if reads_as_prose(text):
                paragraphs.append(text)
    return paragraphs


def plain(text: str) -> str:
    """A paragraph without reStructuredText's marks: names stay in single backticks."""
    text = LINK.sub(r"\1", ROLE.sub(r"`\1`", text)).replace("``", "`")
    return text.removesuffix(":") if text.endswith("::") else text


class Section:
    """Where in a docstring one is: numpydoc sections last until the next underline, Google's while indented."""

    listing = False  # inside a section that lists names
    google = False

    def enter(self, lines: list[str]) -> list[str]:
        """Follow one block's heading, if it has one, and return the lines below it."""
        head = lines[0].strip().rstrip(":").strip()
        if len(lines) > 1 and UNDERLINE.fullmatch(lines[1]):
            self.listing, self.google = bool(ANY["listing sections"].fullmatch(head)), False
            return lines[2:]
        if GOOGLE_HEADER.fullmatch(lines[0]):
            self.listing, self.google = not ANY["prose sections"].fullmatch(head), True
            return textwrap.dedent("\n".join(lines[1:])).split("\n")
        if self.google and lines[0][:1] not in (" ", "\t"):
            self.listing = self.google = False
        return lines


def _set_apart(lines: list[str]) -> bool:
    """Whether the block is code, a table, a list, a heading or the entry of a parameter."""
    if any(UNDERLINE.fullmatch(line) or line.lstrip().startswith(CODE + LIST) for line in lines):
        return True
    if all(line.startswith("    ") for line in lines if line.strip()) or NUMBERED.match(lines[0]):
        return True
    return bool(ENTRY.match(lines[0])) and not ANY["function words"].search(lines[0].split(":")[0])


def reads_as_prose(text: str) -> bool:
    """Whether a paragraph is English sentences: long enough, mostly plain words, with function words among them."""
    if len(text) < SHORTEST or text.count("|") > 4 or "%(" in text or re.search(r"\{\w+\}", text):
        return False
    starts = re.match(r"[`\"'(*\[]{0,3}[A-Z`]", text)
    if not starts or text[-1] not in ".:!?)\"'`" or ANY["boilerplate"].search(text):
        return False
    letters, common = sum(map(len, PLAIN_WORD.findall(text))), len(ANY["function words"].findall(text))
    return letters >= 0.55 * len(text) and common >= 0.12 * len(text.split())
