"""A docstring becomes its paragraphs of English prose: no signatures, lists, tables, code or boilerplate."""

import re
import textwrap

BLANK = re.compile(r"\n[ \t]*\n")
UNDERLINE = re.compile(r"\s*([-=~*^#])\1{2,}\s*")
GOOGLE_HEADER = re.compile(r"[A-Za-z][\w ]{2,24}:\s*")
LISTING_SECTION = re.compile(
    r"(other )?parameters?|returns?|yields?|receives|raises?|warns?|see also|references?|attributes?|methods?|args"
    r"|arguments|keyword (args|arguments)|kwargs|examples?|usage|shape|inputs?|outputs?|functions|classes|refs"
    r"|citations?|properties|variables|todo",
    re.I,
)
PROSE_SECTION = re.compile(r"notes?|warnings?|details|descriptions?|summary", re.I)
CODE = (">>>", "... ", ".. ", "In [", "$ ", "@", "#")
LIST = ("|", "+-", "- ", "* ", ":param", ":type", ":return", ":raise")
ENTRY = re.compile(r"\s*[`*]{0,2}[\w.*, `\[\]]{1,60}\s?(\([^)]*\))?\s?:(\s|$)")  # "name (type): …"
NUMBERED = re.compile(r"\s*(\(?[0-9a-z]{1,2}[.)]|\[\w+\]_?)\s")
FUNCTION_WORD = re.compile(r"\b(the|a|an|is|are|of|to|and|in|for|that|this|be|with|or|if|by|as)\b", re.I)
PLAIN_WORD = re.compile(r"[A-Za-z][a-z']+(?=[\s,.;:)!?]|$)")
LINK = re.compile(r"`([^`<]+?)\s*<[^`>]+>`_{1,2}")  # `text <address>`_ ▶ text
ROLE = re.compile(r":(?:[\w+]+:)*[\w+-]+:`~?([^`<]*?)(?:\s*<[^`>]*>)?`")  # :func:`~numpy.mean` ▶ `numpy.mean`
BOILERPLATE = re.compile(
    r"process of migration|all rights reserved|\blicen[sc]ed? under|copyright|warranty|redistribut"
    r"|for internal use|not (be )?(a )?public|backwards? compatib|no-?op\b.*compatib|subject to change"
    r"|this (class|function|method|module) (is|was|has been) deprecated|metadata_routing|metadata routing"
    r"|automatically generated|auto-?generated|codegen|see the (documentation|docstring) (of|for)",
    re.I,
)
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

    def __init__(self) -> None:
        self.listing = False  # inside a section that lists names
        self.google = False

    def enter(self, lines: list[str]) -> list[str]:
        """Follow one block's heading, if it has one, and return the lines below it."""
        head = lines[0].strip().rstrip(":").strip()
        if len(lines) > 1 and UNDERLINE.fullmatch(lines[1]):
            self.listing, self.google = bool(LISTING_SECTION.fullmatch(head)), False
            return lines[2:]
        if GOOGLE_HEADER.fullmatch(lines[0]):
            self.listing, self.google = not PROSE_SECTION.fullmatch(head), True
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
    return bool(ENTRY.match(lines[0])) and not FUNCTION_WORD.search(lines[0].split(":")[0])


def reads_as_prose(text: str) -> bool:
    """Whether a paragraph is English sentences: long enough, mostly plain words, with function words among them."""
    if len(text) < SHORTEST or text.count("|") > 4 or "%(" in text or re.search(r"\{\w+\}", text):
        return False
    starts = re.match(r"[`\"'(*\[]{0,3}[A-Z`]", text)
    if not starts or text[-1] not in ".:!?)\"'`" or BOILERPLATE.search(text):
        return False
    letters = sum(map(len, PLAIN_WORD.findall(text)))
    return letters >= 0.55 * len(text) and len(FUNCTION_WORD.findall(text)) >= 0.12 * len(text.split())
