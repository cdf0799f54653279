"""The book as one PDF, as `make pdf` prints it; here a few of its pages (`make browser`, after `make book`)."""

import io
from urllib.parse import urldefrag

import pytest
from bs4 import BeautifulSoup

pytestmark = [pytest.mark.browser, pytest.mark.filterwarnings("default")]
NAMES = ["book/index", "notebooks/02_clusters", "book/notation", "book/glossary"]


@pytest.fixture(scope="module")
def printed(printer, browser):
    """Those pages in a file, read again."""
    from pypdf import PdfReader

    file = io.BytesIO()
    printer.print_book(browser, NAMES).write(file)
    return PdfReader(file)


def titles(printer) -> list[str]:
    """Titles of NAMES as the sidebar of the site has them, with their numbers; that of the book first."""
    soup = BeautifulSoup((printer.SITE / "book" / "notation.html").read_text(), "html.parser")
    links = {a["href"]: a.get_text().strip() for a in soup.select(".bd-sidebar-primary li a")}
    return [links["../notebooks/02_clusters.html"], links["#"], links["glossary.html"]]


def test_every_page_of_the_contents_is_printed(printer):
    from .test_site import toc_pages

    assert printer.pages() == [name for name, _ in toc_pages()]


def test_chapters_are_in_order_in_the_outline_and_sheets_are_numbered(printer, printed):
    tops = [entry for entry in printed.outline if not isinstance(entry, list)]
    book = printer.CONFIG["title"]
    assert [entry.title for entry in tops if entry.title != "Contents"] == [book, book, *titles(printer)]
    assert titles(printer)[0][0].isdigit()
    sheets = [printed.get_destination_page_number(entry) for entry in tops]
    assert sheets == sorted(sheets) and sheets[-4] == printer.FRONT
    for sheet, title in zip(sheets[-3:], titles(printer)):
        assert title in " ".join(printed.pages[sheet].extract_text().split())
    contents = " ".join(printed.pages[1].extract_text().split())
    for sheet, title in zip(sheets[-3:], titles(printer)):
        assert f"{title} {sheet + 1}" in contents
    assert "Six points, by hand" in str(printed.outline)
    for number, sheet in enumerate(printed.pages[1:], start=2):
        assert sheet.extract_text().split()[0] == str(number)


def test_links_lead_to_places_in_the_file(printer, printed):
    links = [a.get_object() for sheet in printed.pages for a in sheet.get("/Annots", ())]
    outside = {urldefrag(link["/A"]["/URI"])[0] for link in links if "/A" in link}
    assert not outside & {f"{printer.BASE}{name}.html" for name in NAMES}
    assert any("colab" in url for url in outside)
    places = [link["/Dest"] for link in links if "/Dest" in link]
    glossary = [entry for entry in printed.outline if getattr(entry, "title", "") == "Glossary"][0]
    first = printed.get_destination_page_number(glossary)
    of_sheet = {sheet.indirect_reference.idnum: number for number, sheet in enumerate(printed.pages)}
    terms = {(of_sheet[place[0].idnum], place[3]) for place in places if isinstance(place[3], float)}
    assert len({place for place in terms if place[0] >= first}) > 3  # a term's own place, not the page's top
