"""What every notebook of the repository keeps to, so that it reads, runs and renders like the others."""

import ast
import importlib
import re
from pathlib import Path

import nbformat
import pytest

import chameleon_lite

MOST_CELLS, MOST_LINES = 15, 20
COLAB = "https://colab.research.google.com/github/chameleon-lite/chameleon-lite/blob/main/notebooks/"
METHOD = ("01", "02", "03", "04", "05")  # chapters that use the package as any user would
# What these take from the study beside the method's public names: texts, the page's helpers, and pictures.
BESIDE = {("chameleon_study", "page"), ("chameleon_study.corpora", "load_corpus")}
FIGURES = "chameleon_study.figures"
# Chapter 05 ends with an experiment of the study, its records and their tables.
EXPERIMENT = {
    f"chameleon_study.{name}" for name in "config run provenance records tables claims.statistics".split()
}
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
    return drawn or (module, name) in BESIDE or (chapter == "05" and module in EXPERIMENT)


def test_every_import_of_ours_resolves(cells):
    for cell in code_cells(cells):
        for module, name in imports(python_of(cell)):
            if name and not hasattr(importlib.import_module(module), name):
                module, name = f"{module}.{name}", ""  # a file of a folder that does not import it
            assert importlib.import_module(module), name


def test_chapters_on_the_method_use_public_names_only(cells, notebook_path):
    chapter = notebook_path.stem[:2]
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
    assert not is_public(*pair, "01")
    assert is_public("chameleon_lite", "HyperHead", "01") and is_public(FIGURES, "clouds", "01")
    assert is_public("chameleon_study.run", "run_experiment", "05")
    assert not is_public("chameleon_study.run", "run_experiment", "04")
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
    first = nbformat.read(repository / "notebooks" / "00_map.ipynb", as_version=4).cells[1]
    assert "install" in cells[1].metadata.tags and "hide-input" in cells[1].metadata.tags
    assert cells[1].source == first.source


def test_one_parameters_cell_of_plain_literals(cells):
    (cell,) = tagged(cells, "parameters")
    names = []
    for statement in ast.parse(cell.source).body:
        assert isinstance(statement, ast.Assign), ast.unparse(statement)
        ast.literal_eval(statement.value)  # raises for anything that is computed
        names += [target.id for target in statement.targets]
    assert "profile" in names


def test_size(cells):
    assert len(code_cells(cells)) <= MOST_CELLS
    for cell in code_cells(cells):
        assert len(cell.source.splitlines()) <= MOST_LINES, cell.source.splitlines()[0]


def test_defines_nothing_outside_the_by_hand_cell(cells):
    by_hand = tagged(cells, "by-hand")
    assert len(by_hand) <= 1
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


def test_says_its_run_time_and_offers_exercises(cells):
    text = "\n".join(c.source for c in cells if c.cell_type == "markdown")
    assert re.search(r"^Run time: ", text, re.M)
    assert re.search(r"^## Exercises", text, re.M) and "{admonition} Solution" in text


def test_transformers_is_imported_before_datasets(cells):
    source = "\n".join(c.source for c in code_cells(cells))
    if re.search(r"^(import|from) datasets", source, re.M):
        before = source[: re.search(r"^(import|from) datasets", source, re.M).start()]
        assert re.search(r"^(import|from) transformers", before, re.M)
