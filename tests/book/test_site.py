"""The built site in a real browser: every page at two widths and two themes, by axe-core too; search, theme, sidebar.

Run it after `make book` (`make browser`). Without a site or a browser the tests are skipped on a laptop; under
CI=true they fail, since there a skip would be a check that never ran.
"""

import json
import re
from pathlib import Path
from urllib.parse import unquote, urldefrag, urljoin, urlparse

import pytest
import yaml

pytestmark = [pytest.mark.browser, pytest.mark.filterwarnings("default")]
SITE = Path(__file__).resolve().parents[2] / "_build" / "site"
WIDTHS, THEMES = (1280, 360), ("light", "dark")
FACTS = """() => ({
  wide: document.documentElement.scrollWidth - document.documentElement.clientWidth,
  images: [...document.images].filter(i => i.offsetParent).map(i => [i.src, i.alt, i.complete && i.naturalWidth > 0]),
  math: document.querySelectorAll('.math').length, set: document.querySelectorAll('mjx-container').length,
  merror: document.querySelectorAll('mjx-merror').length,
  traceback: [...document.querySelectorAll('.cell_output')].some(o => o.innerText.includes('Traceback (most recent')),
  cut: [...document.querySelectorAll('.cell_input pre')].filter(p => p.scrollWidth > p.clientWidth + 1)
    .map(p => p.innerText.slice(0, 60)),
  unreachable: [...document.querySelectorAll('.bd-article *')].filter(e => e.scrollWidth > e.clientWidth + 1
    && ['auto', 'scroll'].includes(getComputedStyle(e).overflowX) && e.offsetParent && e.tabIndex < 0)
    .map(e => `${e.tagName}.${e.className}: ${e.innerText.slice(0, 40)}`),
  nameless: [...document.querySelectorAll('.bd-article th')].filter(c => !c.textContent.trim()).length,
  headless: [...document.querySelectorAll('.bd-article .cell_output table')].filter(t => !t.querySelector('th')).length,
  addresses: document.querySelector('.bd-article').textContent.match(/at 0x[0-9a-f]{6,}/g) || [],  // of objects
  height: document.querySelector('.bd-article').scrollHeight,
})"""
ON_PAPER = """async () => {
  await window.MathJax?.startup?.promise;
  window.dispatchEvent(new Event('beforeprint'));
  const show = e => `${e.tagName}.${e.className}: ${e.textContent.trim().slice(0, 40)}`;
  const article = ".bd-article :is(details > *, .admonition p:not(.admonition-title))";
  return {
    folded: [...document.querySelectorAll(article)].filter(e => !e.matches('details.hide > summary')
      && (getComputedStyle(e).visibility === 'hidden' || getComputedStyle(e).opacity === '0'
      || !e.getClientRects().length)).map(show),
    cut: [...document.querySelectorAll('.bd-article :not(mjx-math *, mjx-assistive-mml, mjx-assistive-mml *, svg *)')]
      .filter(e => {
        const box = e.getBoundingClientRect(), measured = e.clientWidth && !e.matches('mjx-container, span.math');
        const scrolls = e.matches('.cell_output, .output, .table-frame, [class*=scroll], table, pre')
          && getComputedStyle(e).overflow !== 'visible';
        return box.width && (scrolls || box.right > innerWidth + 1 || box.left < -1 || (measured
          && e.scrollWidth > e.clientWidth + 1) || (e.matches('img, svg, tr') && box.height > innerHeight));
      }).map(show),
    buttons: [...document.querySelectorAll('button, nav, .piece, .bd-sidebar-primary, .bd-sidebar-secondary')]
      .filter(e => e.getClientRects().length).map(show),
  };
}"""
TALLEST = 10_000  # px of a chapter at 1280; appendices are tables and may be longer
# Of axe-core's rules, those that can differ by width and theme from what was looked at before.
AXE = {(1280, "light"): ("contrast", "rest"), (1280, "dark"): ("contrast",), (360, "light"): ("rest",)}
# Faults that axe-core must see when they are put into a page.
FAULTS = {
    "image-alt": "<img src='../_static/line.svg'>",
    "button-name": "<button></button>",
    "color-contrast": "<p style='color: #aaa; background: #bbb'>grey on grey</p>",
    "aria-valid-attr-value": "<div role='checkbox' aria-checked='maybe' aria-label='x' tabindex='0'></div>",
}
MOST_BYTES = 15e6  # of the whole site


def toc_pages():
    """(docname, is a notebook) of every page of the toc."""
    root = SITE.parents[1]
    toc = yaml.safe_load((root / "_toc.yml").read_text())
    names = [toc["root"]] + [c["file"] for part in toc["parts"] for c in part["chapters"]]
    return [(name, (root / f"{name}.ipynb").exists()) for name in names]


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name, is_notebook", toc_pages())
def test_page_is_whole(visit, serious, name, is_notebook, width):
    """Loaded in one theme, then seen in the other, as when the system's theme changes; axe-core last: it folds out."""
    first, then = THEMES if width == max(WIDTHS) else THEMES[::-1]
    page, problems = visit(f"{name}.html", width, first)
    if page.locator(".math").count():
        page.wait_for_selector("mjx-container", state="attached", timeout=10_000)
    for theme in (first, then):
        show(page, theme)
        is_whole(page.evaluate(FACTS), name, width)
    if is_notebook:
        opens_in_colab(page, name)
    assert problems == []
    for theme in (then, first):
        show(page, theme)
        assert serious(page, AXE.get((width, theme), ())) == [], theme


def show(page, theme):
    page.emulate_media(color_scheme=theme)
    page.wait_for_function(
        "theme => document.documentElement.dataset.theme === theme"
        " && document.getAnimations().every(a => a.playState !== 'running')",  # colours change by and by
        arg=theme,
    )


def is_whole(facts, name, width):
    assert facts["wide"] <= 0, f"{facts['wide']} px wider than the window"
    for source, alt, loaded in facts["images"]:
        assert loaded, source
        assert alt.strip() and "/" not in alt and not alt.endswith((".png", ".svg")), (
            f"alt text of {source}: {alt!r}"
        )
    assert facts["merror"] == 0 and facts["set"] >= facts["math"]
    assert not facts["traceback"] and facts["addresses"] == []
    assert facts["unreachable"] == [] and facts["nameless"] == facts["headless"] == 0
    if width == max(WIDTHS):
        assert facts["cut"] == []
        assert facts["height"] <= TALLEST or not re.search(r"/\d\d_", name)


def opens_in_colab(page, name):
    links = page.eval_on_selector_all("a[href*='colab.research']", "links => links.map(link => link.href)")
    path = f"https://colab.research.google.com/github/chameleon-lite/chameleon-lite/blob/main/{name}.ipynb"
    assert len(links) >= 2 and set(links) == {path}  # the badge and the launch button


@pytest.mark.parametrize("name", ["search.html", "genindex.html"])
def test_pages_without_a_text_are_accessible(visit, serious, name):
    assert serious(visit(name)[0]) == []


def test_axe_sees_faults_put_into_a_page(visit, serious):
    page, _ = visit("book/glossary.html")
    page.evaluate(
        "html => document.querySelector('.bd-article').insertAdjacentHTML('beforeend', html)",
        "".join(FAULTS.values()),
    )
    assert {finding.split()[0] for finding in serious(page)} == set(FAULTS)


def test_links_lead_somewhere(address):
    from bs4 import BeautifulSoup

    paths = {p.relative_to(SITE).as_posix(): p for p in SITE.rglob("*.html")}
    pages = {
        name: BeautifulSoup(path.read_text(), "html.parser")
        for name, path in paths.items()
        if not name.startswith("_static/")
    }  # the theme's own templates lie there
    ids = {name: {tag["id"] for tag in soup.find_all(id=True)} for name, soup in pages.items()}
    broken = []
    for name, soup in pages.items():
        for tag in soup.find_all(["a", "img", "link", "script", "iframe"]):
            link, anchor = urldefrag(tag.get("href") or tag.get("src") or "")
            if urlparse(link).scheme or link.startswith("//"):
                continue
            target = unquote(urlparse(urljoin(f"/{name}", link)).path).lstrip("/") or "index.html"
            if not (SITE / target).exists():
                broken.append(f"{name}: {link}")
            elif anchor and target in ids and target != "index.html" and unquote(anchor) not in ids[target]:
                broken.append(f"{name}: {link}#{anchor}")
    assert len(pages) >= len(toc_pages()) and broken == []


def test_old_addresses_lead_on(visit):
    page, _ = visit("notebooks/00_map.html")
    page.wait_for_url("**/notebooks/00_answer.html")


def test_a_wide_table_is_reached_and_scrolled_by_the_keyboard(visit):
    page, _ = visit("notebooks/a1_regimes.html", 360)
    frame = page.locator(".table-frame[tabindex='0']").first
    frame.focus()
    page.keyboard.press("ArrowRight")
    page.wait_for_function("document.activeElement.scrollLeft > 0")


def test_theme_button_changes_the_theme(visit):
    page, _ = visit("book/index.html", own=True)
    seen = set()
    for _ in range(3):  # light, dark, auto
        seen.add(page.evaluate("document.documentElement.dataset.theme"))
        page.locator("button.theme-switch-button:visible").first.click()
    assert seen == {"light", "dark"}


def test_sidebar_opens_on_a_phone(visit):
    page, _ = visit("book/index.html", 360)
    chapter = page.locator(".bd-sidebar-primary a[href$='00_answer.html'], dialog a[href$='00_answer.html']")
    assert not any(item.is_visible() for item in chapter.all())
    page.locator("button.primary-toggle:visible").first.click()
    page.wait_for_timeout(500)
    (shown,) = [item for item in chapter.all() if item.is_visible()]
    assert shown.bounding_box()["x"] >= 0


def test_search_finds_a_word_of_the_text(visit):
    page, problems = visit("search.html?q=perplexity")
    page.wait_for_selector("#search-results li a", timeout=10_000)
    assert any(
        "glossary" in link.get_attribute("href") for link in page.locator("#search-results li a").all()
    )
    assert problems == []


def test_on_paper_nothing_is_folded_or_cut(browser, address):
    """The width and height are those of `make pdf`, in pixels of the site that a sheet of A4 holds."""
    page, found = browser.new_page(viewport={"width": 800, "height": 1165}, color_scheme="light"), {}
    page.emulate_media(media="print")
    for name, _ in toc_pages():
        page.goto(f"{address}{name}.html", wait_until="load")
        found[name] = page.evaluate(ON_PAPER)
    page.close()
    assert {name: (f["folded"], f["cut"], f["buttons"]) for name, f in found.items() if any(f.values())} == {}


def test_links_are_described_and_the_site_has_a_map(address):
    urls = re.findall(r"<loc>https://[^<]+?/chameleon-lite/([^<]+)</loc>", (SITE / "sitemap.xml").read_text())
    assert {f"{name}.html" for name, _ in toc_pages()} <= set(urls) and all((SITE / u).exists() for u in urls)
    for name, _ in toc_pages():
        head = (SITE / f"{name}.html").read_text().partition("</head>")[0]
        for key in ("title", "url", "type", "site_name"):
            assert f'property="og:{key}"' in head, name


def test_the_site_is_small_and_notebooks_to_download_are_without_outputs():
    assert sum(path.stat().st_size for path in SITE.rglob("*") if path.is_file()) < MOST_BYTES
    assert (SITE / "_static" / "book.js").stat().st_size < 30_000
    for path in (SITE / "_sources").rglob("*.ipynb"):
        assert all(not cell.get("outputs") for cell in json.loads(path.read_text())["cells"]), path.name
