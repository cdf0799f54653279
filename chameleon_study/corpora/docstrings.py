"""The embedded corpus: the documentation of installed libraries, in English prose.

    .py sources ── ast ─▶ public names with docstrings ── prose.py ─▶ paragraphs ── near-copies dropped ─▶ documents

The sources are read, never imported: importing prints, warns, takes a gigabyte, and gives texts that hold
memory addresses. The same library versions give the same documents on every machine.
"""

import ast
import gc
import inspect
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path

import yaml

from chameleon_lite.app.corpus import Corpus, split_documents
from chameleon_lite.errors import UserError
from chameleon_lite.text import Document

from .prose import prose

_TABLE = yaml.safe_load((files(__package__) / "libraries.yaml").read_text(encoding="utf-8"))
LIBRARIES, MORE = _TABLE["docstrings"], _TABLE["more"]  # import name ▶ name to install, None: the same
SKIPPED = re.compile("|".join(_TABLE["skipped"]))  # files
# calls that give compiled functions their text
ADDED_LATER = ("add_newdoc", "add_docstr", "add_docstr_all", "add_newdoc_for_scalar_type")
ADDED_TO_ARRAY = "_array_method_doc"  # numpy's short form for methods of ndarray
IDENTIFIER = re.compile(r"`[^`]*`|\b\w*[\d_]\w*\b|\b\w+(?:\.\w+)+\b|\b\w*[a-z][A-Z]\w*\b")
LONGEST = 2_000  # characters of one explanation, in whole paragraphs


def build(form: str = "paragraphs", *, libs: Sequence[str] = (), seed: int = 0) -> Corpus:
    """The corpus in one of its forms; `group` is the library, or `python` for the language reference.

    "paragraphs": a document is one paragraph. "instructions": the prompt asks to explain a name and the
    document is the prose about it. "large": paragraphs of ten times as many libraries. `libs` replaces the form's
    libraries. Raises UserError, naming it, for one that is not installed.
    """
    libs = libs or read_by(form)
    making = _instruction if form == "instructions" else _paragraphs
    documents = [d for (lib, name), texts in _explained(libs).items() for d in making(lib, name, texts)]
    splits, notes = split_documents(documents, seed=seed)
    python = sys.version.split()[0]
    notes["versions"] = {lib: version(to_install(lib)) for lib in libs} | {"python": python}
    name = "docstrings" if form == "paragraphs" else f"docstrings-{form}"
    which = ", ".join(libs) if form != "large" else f"{len(libs)} packages"
    source = f"docstrings of {which} as installed, language reference of Python {python}"
    return Corpus(name, splits, source, notes)


def read_by(form: str) -> tuple[str, ...]:
    """The import names of the libraries that a form of the corpus is read from."""
    return tuple(LIBRARIES | MORE if form == "large" else LIBRARIES)


def to_install(lib: str) -> str:
    """The name under which a library is installed, by its import name."""
    return LIBRARIES.get(lib) or MORE.get(lib) or lib


def _paragraphs(library: str, name: str, texts: list[str]) -> Iterator[Document]:
    for i, text in enumerate(texts):
        yield Document(f"{name}#{i}", text, group=library)


def _instruction(library: str, name: str, texts: list[str]) -> Iterator[Document]:
    request = f"Explain `{name}`."
    if library == "python":
        request = f"Explain `{name.removeprefix('python.')}` in Python."
    text = texts[0]
    for more in texts[1:]:
        if len(text) + len(more) > LONGEST:
            break
        text += "\n\n" + more
    yield Document(name, text, group=library, prompt=request + "\n\n", instruction=request)


def _explained(libs: Sequence[str]) -> dict[tuple[str, str], list[str]]:
    """(library, name) ▶ paragraphs, for every public name; paragraphs equal but for names and digits appear once."""
    seen: set[str] = set()
    explained: dict[tuple[str, str], list[str]] = {}
    collected = gc.isenabled()
    gc.disable()  # syntax trees are many small objects without cycles: the collector would double the time
    try:
        for library, name, docstring in _docstrings(libs):
            for text in prose(docstring):
                mask = IDENTIFIER.sub("#", text).lower()
                if mask not in seen:
                    seen.add(mask)
                    explained.setdefault((library, name), []).append(text)
    finally:
        if collected:
            gc.enable()
    return explained


def _docstrings(libs: Sequence[str]) -> Iterator[tuple[str, str, str]]:
    for lib in libs:
        sources = _sources(lib)
        short = _exported(lib, sources)
        for module, path in sources:
            for names, docstring in _of_source(path.read_text(encoding="utf-8", errors="replace")):
                if not any(name.startswith("_") for name in names[-2:]):
                    yield lib, _public_name(module, names, short), docstring
    from pydoc_data.topics import topics

    for topic in sorted(topics):
        yield "python", f"python.{topic}", inspect.cleandoc(topics[topic])


def _sources(lib: str) -> list[tuple[tuple[str, ...], Path]]:
    """Module and .py file of a library in a fixed order, without tests, vendored code and internals."""
    spec, install = find_spec(lib), to_install(lib)
    if spec is None or spec.origin is None:
        instead = f"pip install {install}, or give a corpus exported elsewhere (a .jsonl file) in its place"
        raise UserError(f"the docstrings corpus reads {install}, which is not installed: {instead}")
    root, found = Path(spec.origin).parent, []
    for relative in sorted(f"{lib}/{path.relative_to(root).as_posix()}" for path in root.rglob("*.py")):
        if not SKIPPED.search(relative):
            parts = tuple(relative.removesuffix(".py").removesuffix("/__init__").split("/"))
            found.append((parts, root.parent / relative))
    return found


def _parse(source: str) -> ast.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # other people's invalid escapes
        try:
            return ast.parse(source)
        except (SyntaxError, ValueError):
            return ast.Module([], [])  # a template, or for another Python


def _of_source(source: str) -> Iterator[tuple[tuple[str, ...], str]]:
    """(names inside the module, docstring) of the module, its classes, functions and methods."""
    tree = _parse(source)
    yield from _of_node(tree, ())
    if any(call in source for call in (*ADDED_LATER, ADDED_TO_ARRAY)):
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                yield from _of_call(node)


def _of_node(node: ast.AST, names: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], str]]:
    if docstring := ast.get_docstring(node):
        yield names, docstring
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return  # what is defined inside a function has no public name
    body = list(node.body)
    while body:
        child = body.pop(0)
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _of_node(child, (*names, child.name))
        elif isinstance(child, ast.If | ast.Try | ast.With):
            body = [*child.body, *getattr(child, "orelse", ()), *body]


def _of_call(node: ast.Call) -> Iterator[tuple[tuple[str, ...], str]]:
    """The name and text of add_newdoc("numpy._core", "add", text), add_newdoc(…, "ndarray", ("sort", text))
    and add_docstr(torch.abs, text)."""
    called = getattr(node.func, "id", getattr(node.func, "attr", ""))
    if called == ADDED_TO_ARRAY:
        names = ["ndarray", *(_name(a) for a in node.args[:1])]
    elif called in ADDED_LATER:
        names = [name for a in node.args[:2] if (name := _name(a))][-1:]
        names += [_name(a.elts[0]) for a in node.args[2:] if isinstance(a, ast.Tuple) and a.elts]
    else:
        return
    constants = (c.value for a in node.args for c in ast.walk(a) if isinstance(c, ast.Constant))
    docstring = max((text for text in constants if isinstance(text, str)), key=len, default="")
    if docstring and names and all(names):
        yield tuple(names), inspect.cleandoc(docstring)


def _name(argument: ast.expr) -> str | None:
    if isinstance(argument, ast.Attribute):
        return argument.attr
    value = getattr(argument, "value", None) if isinstance(argument, ast.Constant) else None
    return value if isinstance(value, str) and value.isidentifier() else None


def _exported(lib: str, sources: list[tuple[tuple[str, ...], Path]]) -> dict[str, list[tuple[str, ...]]]:
    """The packages that offer a name: `from ._core import mean` in numpy/__init__.py gives mean ▶ [("numpy",)]."""
    offers: dict[str, list[tuple[str, ...]]] = {}
    for package, path in sources:
        if path.name != "__init__.py" or any(part.startswith("_") for part in package):
            continue
        for node in ast.walk(_parse(path.read_text(encoding="utf-8", errors="replace"))):
            if isinstance(node, ast.ImportFrom) and (node.level or (node.module or "").startswith(f"{lib}.")):
                for alias in node.names:
                    offers.setdefault(alias.asname or alias.name, []).append(package)
    return offers


def _public_name(module: tuple[str, ...], names: tuple[str, ...], exported: dict) -> str:
    """The name as a user writes it: from the shortest package above the module that offers it."""
    packages = [p for p in exported.get(names[0], ()) if p == module[: len(p)]] if names else []
    home = min(packages, key=len, default=tuple(part for part in module if not part.startswith("_")))
    return ".".join((*home, *names))
