"""Texts that are HTML, in every place where a page shows texts: shown as text, never read as elements or code."""

from html.parser import HTMLParser

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from chameleon_bench import tables
from chameleon_study import page

EVIL = [
    "<script>steal()</script>",
    '<img src="x" onerror="steal()">',
    "</td></table><svg/onload=steal()>",
    "<a href='javascript:steal()'>&lt;b&gt;</a>",
    "--><iframe srcdoc='<p>'></iframe><!--",
    '" onmouseover="steal()',
]
HARMLESS = {"a", "caption", "div", "table", "tbody", "td", "th", "thead", "tr", "style"}


class Read(HTMLParser):
    """What a browser would make of a page: elements, attributes, and the texts of cells and captions."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements, self.attributes, self.texts = set(), {}, [""]
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.add(tag)
        self.attributes |= dict(attrs)
        self.texts.append("")

    def handle_endtag(self, tag):
        self.texts.append("")

    def handle_data(self, data):
        self.texts[-1] += data


def judged(html: str, *texts: str) -> None:
    """No element or attribute that was not ours, and the texts whole."""
    found = Read(html)
    assert found.elements <= HARMLESS, found.elements - HARMLESS
    assert not [name for name in found.attributes if name.startswith("on") or name in ("src", "srcdoc")]
    assert "javascript" not in str(found.attributes.get("href"))
    shown = {text.strip() for text in found.texts}
    assert not [text for text in texts if text not in shown]


@pytest.fixture
def frame():
    """Texts as cells, names of columns and rows, and names of both axes."""
    made = pd.DataFrame({text: [*EVIL[1:], EVIL[0]] for text in EVIL}, index=pd.Index(EVIL, name=EVIL[1]))
    return made.rename_axis(columns=EVIL[0]).assign(number=1 / 3)


@pytest.mark.parametrize("how", [{}, {"precision": 2}, {"na_rep": "–", "formatter": {"number": "{:.0f}"}}])
@pytest.mark.parametrize("index", [True, False])
@pytest.mark.parametrize("caption", EVIL)
def test_a_table_of_a_page_shows_texts(frame, caption, index, how):
    shown = page.table(frame, caption, index=index, **how)
    judged(shown._repr_html_(), caption, *EVIL)
    judged(shown.to_html(), caption, *EVIL)


def test_a_plain_frame_shows_texts(frame):
    with pd.option_context("display.max_colwidth", None):
        judged(frame._repr_html_(), *EVIL)
        judged(frame[[EVIL[0]]].iloc[:, 0].to_frame().to_html(), *EVIL)


@pytest.mark.parametrize("text", EVIL)
def test_a_link_to_a_table_is_only_that(frame, text):
    link = page.csv_link(frame, text).data
    found = Read(link)
    assert found.elements == {"a"} and set(found.attributes) == {"download", "href"}
    assert found.attributes["download"] == f"{text}.csv"
    assert found.attributes["href"].startswith("data:text/csv;base64,")


@pytest.mark.parametrize("text", EVIL)
def test_timings_of_somebody_elses_machine_are_text(text):
    entry = {"what": text, "status": "failed", "reason": "", "unavailable": text, "comparisons": []}
    stored = {"machine": {"device": text, "cores": 1}, "rows": {"B5": entry}}
    judged(page.table(tables.goals_frame(stored), text, precision=2, na_rep="")._repr_html_(), text)
    judged(page.table(tables.missed_frame({text: stored}))._repr_html_(), text)


def test_pages_style_tables_by_that_function_alone(repository):
    assert [
        p.name for p in (repository / "notebooks").glob("*.ipynb") if ".style.format" in p.read_text()
    ] == []
    for path in (repository / "notebooks").glob("*.ipynb"):
        for way in (".style.hide", "set_caption", "escape=False", "HTML(", "Markdown(", "innerHTML"):
            assert way not in path.read_text(encoding="utf-8"), (path.name, way)


def test_figures_show_texts(tmp_path):
    from chameleon_study.figures.study import shifts

    names = [*EVIL, "a $ b $ c", r"\frac{", "$x^$"]
    fig, ax = plt.subplots()
    shifts(ax, np.ones((len(names), len(names))), names, names)
    fig.savefig(tmp_path / "x.svg")
    plt.close(fig)
    found = Read((tmp_path / "x.svg").read_text(encoding="utf-8"))
    assert not found.elements & {"script", "img", "iframe", "a", "foreignobject"}
    assert not [name for name in found.attributes if name.startswith("on")]


def test_a_built_page_shows_texts(tmp_path):
    sphinx = pytest.importorskip("sphinx.application", reason="the extra `book` is not installed")
    pytest.importorskip("myst_nb")
    from nbformat import v4, write

    plain, table = pd.DataFrame({"c": EVIL}, index=EVIL), pd.DataFrame({text: EVIL for text in EVIL})
    shown = [frame._repr_html_() for frame in (plain, page.table(table, EVIL[0]))]
    outputs = [v4.new_output("stream", text="\n".join(EVIL))]
    outputs += [v4.new_output("display_data", {"text/html": html, "text/plain": ""}) for html in shown]
    for i, text in enumerate(EVIL):  # as `page.keep` leaves them
        kept = {"scrapbook": {"name": f"e{i}", "mime_prefix": "application/papermill.record/"}}
        data = {"application/papermill.record/text/plain": repr(text)}
        outputs.append(v4.new_output("display_data", data, metadata=kept))
    quoted = "\n\n".join(f"{{glue:text}}`e{i}`" for i in range(len(EVIL)))
    code = v4.new_code_cell(f"evil = {EVIL!r}", outputs=outputs)
    cells = [v4.new_markdown_cell("# Title"), code, v4.new_markdown_cell(quoted)]
    (tmp_path / "source").mkdir()
    write(v4.new_notebook(cells=cells), tmp_path / "source" / "index.ipynb")
    places = [tmp_path / name for name in ("source", "site", "doctrees")]
    settings = {"extensions": ["myst_nb"], "nb_execution_mode": "off", "html_theme": "basic"}
    sphinx.Sphinx(places[0], None, *places[1:], "html", settings, status=None, warning=None).build()
    html = (tmp_path / "site" / "index.html").read_text(encoding="utf-8")
    body = html[html.index('<div class="body"') :]
    body = body[: body.index('<div class="sphinxsidebar"')]
    found = Read(body)
    assert not found.elements & {"script", "img", "svg", "iframe"}
    assert not [name for name in found.attributes if name.startswith("on")]
    assert sum(text.count(EVIL[0]) for text in found.texts) >= 6
