"""Print the built book into one PDF, _build/book.pdf: `make pdf`, after `make book`.

Chromium prints the pages of _toc.yml one by one, pypdf joins them. Pages are answered from _build/site under the
book's public address: a link to a page of the book leads to its place in the file, any other to the web.
"""

import io
import shutil
import sys
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from urllib.parse import urldefrag

import yaml
from jinja2 import Environment, FileSystemLoader
from playwright.sync_api import sync_playwright
from pypdf import PdfReader, PdfWriter
from pypdf.generic import ArrayObject, FloatObject, NameObject, NullObject

ROOT = Path(__file__).resolve().parents[1]
SITE, OUT = ROOT / "_build" / "site", ROOT / "_build" / "book.pdf"
CONFIG = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))
BASE = CONFIG["html"]["baseurl"]
MARGINS = {"top": 16, "sides": 15, "bottom": 18}  # mm; the page's number stands in the last
PAPER = 800, 1165  # px of the site that A4 holds between its margins, made smaller by SCALE
SCALE = (210 - 2 * MARGINS["sides"]) / 25.4 * 96 / PAPER[0]
FRONT = 2  # pages before the first: title and contents
# The cover, the style of printed pages, and what readies a page for them.
TEMPLATES = Environment(loader=FileSystemLoader(ROOT / "book" / "_pdf"), autoescape=True)


def pages() -> list[str]:
    """The book's pages in reading order, as `notebooks/01_tokens`."""
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
    return [toc["root"], *(chapter["file"] for part in toc["parts"] for chapter in part["chapters"])]


def answer(route) -> None:
    """A file of the site for an address of the book; nothing from other hosts."""
    path = SITE / urldefrag(route.request.url)[0].partition("?")[0].removeprefix(BASE)
    route.fulfill(path=path) if path.is_file() else route.abort()


def links(sheets) -> Iterator:
    """The links of a file, each a dictionary that may be changed."""
    return (link.get_object() for sheet in sheets for link in sheet.get("/Annots", ()))


def on_paper(page, before: int) -> PdfReader:
    """The open page in print, its sheets numbered on from `before`; links inside it lead to places, not to names."""
    page.add_style_tag(content=TEMPLATES.get_template("sheet.css").render(MARGINS, before=before))
    how = {"prefer_css_page_size": True, "print_background": True, "outline": True, "tagged": True}
    part = PdfReader(io.BytesIO(page.pdf(scale=SCALE, **how)))
    for link in links(part.pages):
        if place := part.named_destinations.get(link.get("/Dest")):
            link[NameObject("/Dest")] = place.dest_array
    return part


def print_book(browser, names: list[str]) -> PdfWriter:
    """Title, contents and the named pages as one file, with every heading in its outline."""
    page = browser.new_page(color_scheme="light", viewport=dict(zip(("width", "height"), PAPER)))
    page.route("**/*", answer)
    parts, lines, before, places = [], [], FRONT, {}
    for name in names:
        page.goto(url := f"{BASE}{name}.html", wait_until="load")
        lines.append((url, page.evaluate(TEMPLATES.get_template("ready.js").render()), before + 1))
        part = on_paper(page, before)
        places[url] = before, None
        for anchor, place in part.named_destinations.items():
            places[f"{url}#{anchor[1:]}"] = before + part.get_destination_page_number(place), place.top
        parts.append(part)
        before += len(part.pages)
    facts = {"title": CONFIG["title"], "author": CONFIG["author"], "today": date.today(), "base": BASE}
    page.set_content(TEMPLATES.get_template("cover.html").render(facts, lines=lines))
    parts.insert(0, on_paper(page, 0))
    page.close()
    writer = PdfWriter()
    for part in parts:
        writer.append(part)
    lead_inside(writer, places)
    writer.add_metadata({"/Title": CONFIG["title"], "/Author": CONFIG["author"]})
    return writer


def lead_inside(writer: PdfWriter, places: dict[str, tuple]) -> None:
    """Let links to an address of `places` lead to its (sheet, height) in the file; None is the sheet's top."""
    for link in links(writer.pages):
        url = link.get("/A", {}).get("/URI", "")
        if place := places.get(url) or places.get(urldefrag(url)[0]):
            del link["/A"]
            sheet, top = writer.pages[place[0]].indirect_reference, place[1]
            height = NullObject() if top is None else FloatObject(top)
            whither = [sheet, NameObject("/XYZ"), NullObject(), height, NullObject()]
            link[NameObject("/Dest")] = ArrayObject(whither)


def main() -> int:
    """0 when the file is written, 1 where the site or the browser is missing."""
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if not chromium or not (SITE / "index.html").exists():
        print("there is no book yet; run: make book" if chromium else "no chromium: apt install chromium")
        return 1
    with sync_playwright() as api:
        browser = api.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        writer = print_book(browser, pages())
        browser.close()
    writer.write(OUT)
    print(f"[pdf] {len(writer.pages)} pages, {OUT.stat().st_size / 1e6:.1f} MB: {OUT.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
