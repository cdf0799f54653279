"""What every notebook of the repository keeps to, so that it reads, runs and renders like the others."""

import ast
import importlib
import re
from pathlib import Path

import nbformat
import pytest

import chameleon_lite

from ..repository.counts import PACKAGES

MOST_CELLS = 32
IN_VIEW, BY_HAND, OUT_OF_VIEW = 12, 15, 25  # lines of a cell that are not blank
WIDTH = 79  # columns that a page shows beside its contents in a window of 1280 px
HIDDEN = {"remove-cell", "remove-input", "hide-input"}
PLUMBING = re.compile(r"\bpage\.(start|keep|root|csv_link)\(|\boption_context\(|\bset_option\(")
COLAB = "https://colab.research.google.com/github/chameleon-lite/chameleon-lite/blob/main/notebooks/"
# The chapters that use the package as any user would; the last of them on the whole method.
METHOD = "01_tokens 02_clusters 03_lora 04_hyper_head 05_method".split()
WHOLE = METHOD[-1]
# What these take from the study beside the method's public names: texts, the page's helpers, and pictures.
BESIDE = {("chameleon_study", "page"), ("chameleon_study.corpora", "load_corpus")}
FIGURES = "chameleon_study.figures"
# What the last of them takes besides: its own loop's parts from the package, and stored records with their tables.
PARTS = {("chameleon_lite.settings", "TrainSettings"), ("chameleon_lite.conditions", "GroupMean")}
RECORDS = {"chameleon_study.records", "chameleon_study.tables"}
NUMBERED = re.compile(r"\bchapters?\s+\d", re.I)
SOURCE = re.compile(r"^```\{from-source\} (\S+) (\S+)\n(.+)\n```$", re.M)
DRAWS = re.compile(r"\bplt\.|\.plot\(|\.imshow\(|\.scatter\(|\bfigures\.\w+\(")


@pytest.fixture
def cells(notebook_path):
    return nbformat.read(notebook_path, as_version=4).cells


def code_cells(cells):
    return [c for c in cells if c.cell_type == "code"]


def tagged(cells, tag):
    return [c for c in cells if tag in c.metadata.get("tags", [])]


def python_of(cell) -> ast.Module:
    """The cell's syntax tree, with lines for IPython (`!`, `%`) turned into `pass`."""
    return ast.parse(re.sub(r"^(\s*)[!%].*$", r"\1pass", cell.source, flags=re.M))


def imports(tree: ast.AST) -> list[tuple[str, str]]:
    """(module, name) of everything that is imported from our packages; the name of `import x` is ""."""
    pairs = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            pairs += [(alias.name, "") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            pairs += [(node.module, alias.name) for alias in node.names]
    return [(module, name) for module, name in pairs if module.split(".")[0].startswith("chameleon_")]


def is_public(module: str, name: str, chapter: str = "") -> bool:
    """Whether a chapter on the method, or the README ("" as chapter), may import `name` from `module`."""
    if module == "chameleon_lite":
        return name in chameleon_lite.__all__
    if not chapter:
        return False
    drawn = module == FIGURES or module.startswith(f"{FIGURES}.")
    of_whole = module in RECORDS or (module, name) in PARTS
    return drawn or (module, name) in BESIDE or (chapter == WHOLE and of_whole)


def test_every_import_of_ours_resolves(cells):
    for cell in code_cells(cells):
        for module, name in imports(python_of(cell)):
            if name and not hasattr(importlib.import_module(module), name):
                module, name = f"{module}.{name}", ""  # a file of a folder that does not import it
            assert importlib.import_module(module), name


def test_chapters_on_the_method_use_public_names_only(cells, notebook_path):
    chapter = notebook_path.stem
    if chapter not in METHOD:
        pytest.skip("not a chapter on the method")
    for cell in code_cells(cells):
        for module, name in imports(python_of(cell)):
            assert is_public(module, name, chapter), f"from {module} import {name}"


def test_the_readme_uses_public_names_only(repository):
    for block in re.findall(r"```python\n(.*?)```", (repository / "README.md").read_text(), re.S):
        taken = imports(ast.parse(block))
        assert taken and all(is_public(*pair) for pair in taken), taken


@pytest.mark.parametrize(
    "line",
    [
        "import chameleon_lite.heads",
        "from chameleon_lite.heads import HyperHead",
        "from chameleon_lite import heads",
        "from chameleon_study.sources import mean_cosine",
        "from chameleon_study.corpora import docstrings",
        "def f():\n    from chameleon_bench.report import run_rows",
    ],
)
def test_other_imports_are_seen_and_refused(line):
    (pair,) = imports(ast.parse(line))
    assert not is_public(*pair, METHOD[0])
    assert is_public("chameleon_lite", "HyperHead", METHOD[0]) and is_public(FIGURES, "study", METHOD[0])
    assert is_public("chameleon_study.records", "load_records", WHOLE)
    assert not is_public("chameleon_study.records", "load_records", METHOD[0])
    assert not is_public("chameleon_study", "page")  # the README has no page


def test_sources_shown_exist_and_other_viewers_show_a_sentence(cells, repository):
    text = "\n".join(c.source for c in cells if c.cell_type == "markdown")
    shown = SOURCE.findall(text)
    assert text.count("{from-source}") == len(shown)
    for path, name, sentence in shown:
        tree = ast.parse((repository / path).read_text())
        assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, name
        assert Path(path).name in sentence and f"`{name}`" in sentence and sentence.endswith(".")


def test_there_are_notebooks(repository):
    assert list((repository / "notebooks").glob("*.ipynb"))


def test_valid_without_outputs_and_with_unique_ids(notebook_path):
    book = nbformat.read(notebook_path, as_version=4)
    nbformat.validate(book)
    ids = [c["id"] for c in book.cells]
    assert len(set(ids)) == len(ids)
    for cell in code_cells(book.cells):
        assert cell.outputs == [] and cell.execution_count is None
    assert book.metadata.kernelspec.name == "python3"
    assert not {"papermill", "widgets"} & set(book.metadata)


def test_first_cell_has_title_and_a_badge_that_opens_this_file(cells, notebook_path):
    assert cells[0].cell_type == "markdown" and cells[0].source.startswith("# ")
    assert f"]({COLAB}{notebook_path.name})" in cells[0].source
    assert COLAB not in "".join(c.source for c in cells[1:])


def test_second_cell_is_the_same_installation_everywhere(cells, repository):
    first = nbformat.read(repository / "notebooks" / "00_answer.ipynb", as_version=4).cells[1]
    assert "install" in cells[1].metadata.tags and "remove-cell" in cells[1].metadata.tags
    assert cells[1].source == first.source


def test_one_parameters_cell_of_plain_literals(cells):
    (cell,) = tagged(cells, "parameters")
    assert "remove-cell" in cell.metadata.tags  # the page's first line says their values
    names = []
    for statement in ast.parse(cell.source).body:
        assert isinstance(statement, ast.Assign), ast.unparse(statement)
        ast.literal_eval(statement.value)  # raises for anything that is computed
        names += [target.id for target in statement.targets]
    assert "profile" in names


def too_large(cell) -> str:
    """What makes a code cell too large to read on the page, or ""."""
    lines, tags = [line for line in cell.source.splitlines() if line.strip()], cell.metadata.get("tags", [])
    most = OUT_OF_VIEW if HIDDEN & set(tags) else BY_HAND if "by-hand" in tags else IN_VIEW
    if len(lines) > most:
        return f"{len(lines)} lines, at most {most}"
    wide = [line for line in lines if len(line) > WIDTH]
    return f"wider than {WIDTH}: {wide[0]}" if wide else ""


def test_cells_fit_the_page(cells):
    assert len(code_cells(cells)) <= MOST_CELLS
    for cell in code_cells(cells):
        assert too_large(cell) == "", cell.source.splitlines()[0]


@pytest.mark.parametrize(
    "source, tags, fits",
    [
        ("x = 1\n\n" * 12, [], True),
        ("x = 1\n" * 13, [], False),
        ("x = 1\n" * 15, ["by-hand"], True),
        ("x = 1\n" * 25, ["hide-input"], True),
        ("x = 1\n" * 26, ["remove-cell"], False),
        (f"x = '{'a' * 73}'", [], True),
        (f"x = '{'a' * 74}'", ["hide-input"], False),
    ],
)
def test_a_cell_that_does_not_fit_is_seen(source, tags, fits):
    cell = nbformat.v4.new_code_cell(source, metadata={"tags": tags})
    assert (too_large(cell) == "") == fits


def test_plumbing_is_out_of_view(cells):
    for cell in code_cells(cells):
        if not HIDDEN & set(cell.metadata.get("tags", [])):
            assert not PLUMBING.search(cell.source), cell.source.splitlines()[0]


def test_figures_show_their_code_on_demand(cells):
    for cell in code_cells(cells):
        if "figure" in cell.metadata.get("mystnb", {}):
            assert "hide-input" in cell.metadata.tags, cell.source.splitlines()[0]


def test_every_number_that_is_quoted_is_kept(cells):
    text = "\n".join(c.source for c in cells if c.cell_type == "markdown")
    code = "\n".join(c.source for c in cells if c.cell_type == "code")
    for name in re.findall(r"\{glue:text\}`(\w+)", text):
        parts = [name, name.rpartition("_")[0], name.partition("_")[0] + "_{"]
        assert any(part and part in code for part in parts), name


def test_no_chapter_number_is_typed(repository):
    kinds = ["*.md", "_config.yml", "book/*.md", "notebooks/*.ipynb", "experiments/*.yaml"]
    paths = [p for kind in kinds for p in repository.glob(kind)]
    paths += [p for name in PACKAGES for p in (repository / name).rglob("*.py")]
    assert len(paths) > 100
    for path in paths:
        assert not NUMBERED.search(path.read_text(encoding="utf-8")), path
    assert NUMBERED.search("see chapter 9") and NUMBERED.search("Chapters 08 and 09")
    for path in (repository / "notebooks").glob("*.ipynb"):
        title = nbformat.read(path, as_version=4).cells[0].source.splitlines()[0]
        assert not re.match(r"# \d", title), path  # the table of contents numbers it


def test_defines_nothing_outside_the_by_hand_cell(cells, notebook_path):
    by_hand = tagged(cells, "by-hand")
    assert len(by_hand) <= (2 if notebook_path.stem == WHOLE else 1)
    for cell in by_hand:
        assert any(isinstance(node, ast.Assert) for node in python_of(cell).body), (
            "must end by asserting equality"
        )
    kinds = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
    for cell in code_cells(cells):
        if cell not in by_hand:
            assert not [n.name for n in ast.walk(python_of(cell)) if isinstance(n, kinds)]


def test_cells_that_draw_say_what_is_seen(cells):
    for cell in code_cells(cells):
        image = cell.metadata.get("mystnb", {}).get("image", {})
        figure = cell.metadata.get("mystnb", {}).get("figure")
        if figure or DRAWS.search(cell.source):
            assert len(image.get("alt", "")) > 20, cell.source.splitlines()[0]
        if figure:
            assert figure["name"].startswith("fig-") and figure["caption"]


def test_a_numbered_figure_is_its_cells_only_output(cells):
    for cell in cells:  # a second output would get the same label, which the strict build refuses
        if "figure" in cell.metadata.get("mystnb", {}):
            assert "display(" not in cell.source, cell.source.splitlines()[0]


def test_images_in_the_text_have_alternative_text(cells):
    for cell in cells:
        if cell.cell_type == "markdown":
            for alt in re.findall(r"!\[([^\]]*)\]\(", cell.source):
                assert len(alt) > 10, cell.source[:60]


def test_says_its_run_time_and_chapters_offer_exercises(cells, notebook_path):
    text = "\n".join(c.source for c in cells if c.cell_type == "markdown")
    assert re.search(r"^Run time: ", text, re.M)
    if notebook_path.stem[0].isdigit():  # appendices are tables
        assert re.search(r"^## Exercises", text, re.M) and "{admonition} Solution" in text
        assert text.count("{admonition} Solution") == len(
            re.findall(r"^\d\. ", text.split("## Exercises")[1], re.M)
        )


def test_chapters_say_what_was_seen(cells, notebook_path):
    text = "\n".join(c.source for c in cells if c.cell_type == "markdown")
    if notebook_path.stem[0].isdigit():
        assert "What we saw" in text or "{admonition} The answer" in text
        hidden = [c for c in code_cells(cells) if "remove-cell" in c.metadata.get("tags", [])]
        assert any("assert " in c.source for c in hidden), "a sentence on results needs a check"


def test_transformers_is_imported_before_datasets(cells):
    source = "\n".join(c.source for c in code_cells(cells))
    if re.search(r"^(import|from) datasets", source, re.M):
        before = source[: re.search(r"^(import|from) datasets", source, re.M).start()]
        assert re.search(r"^(import|from) transformers", before, re.M)
