"""Helpers of the book's tests: the repository's root, its notebooks, the book's tools, the site in a browser."""

import functools
import http.server
import importlib.util
import os
import shutil
import sys
import threading
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SITE = ROOT / "_build" / "site"
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",  # no request leaves this machine
]


@pytest.fixture(scope="session")
def repository() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def book_tools():
    """`book/build.py`, which is a script beside the pages and not part of the package, by its name."""
    pytest.importorskip("papermill", reason="the extra `book` is not installed")
    spec = importlib.util.spec_from_file_location("build", ROOT / "book" / "build.py")
    sys.modules["build"] = importlib.util.module_from_spec(spec)
    sys.path.append(str(ROOT / "book"))  # where it finds its modules, as a script does
    spec.loader.exec_module(sys.modules["build"])
    yield {"build": sys.modules["build"]}
    del sys.modules["build"]
    sys.path.remove(str(ROOT / "book"))


def pytest_generate_tests(metafunc):
    """A test that takes `notebook_path` runs once for every notebook of the repository."""
    if "notebook_path" in metafunc.fixturenames:
        paths = sorted((ROOT / "notebooks").glob("*.ipynb"))
        metafunc.parametrize("notebook_path", paths, ids=[p.stem for p in paths])


def missing(what: str):
    """Skip on a laptop, fail in CI."""
    (pytest.fail if os.environ.get("CI", "").lower() in ("1", "true") else pytest.skip)(what)


class Quiet(http.server.SimpleHTTPRequestHandler):
    def end_headers(self):
        self.send_header("Cache-Control", "max-age=3600")
        super().end_headers()

    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def address():
    if not (SITE / "index.html").exists():
        missing("there is no site: run make book")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(SITE)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(scope="module")
def browser():
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if path is None:
        missing("no chromium: apt install chromium")
    if importlib.util.find_spec("playwright") is None:
        missing('playwright is not installed: pip install -e ".[dev]"')
    from playwright import sync_api as api

    with api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def printer(address):
    """`book/pdf.py`, where there is a site to print."""
    if importlib.util.find_spec("pypdf") is None:
        missing('pypdf is not installed: pip install -e ".[dev]"')
    spec = importlib.util.spec_from_file_location("pdf", ROOT / "book" / "pdf.py")
    spec.loader.exec_module(module := importlib.util.module_from_spec(spec))
    return module


@pytest.fixture(scope="module")
def context(browser):
    """What pages share: a cache, so that none loads and compiles MathJax anew; and what a site may store."""
    context = browser.new_context()
    yield context
    context.close()


@pytest.fixture
def visit(browser, context, address):
    """Open a page with given width and theme; collects what the browser complains about. own: nothing is shared."""
    opened = []

    def call(name, width=1280, theme="light", own=False):
        page, problems = (browser if own else context).new_page(), []
        opened.append(page)
        page.set_viewport_size({"width": width, "height": 900})
        page.emulate_media(color_scheme=theme)
        page.on("pageerror", lambda error: problems.append(f"script error: {error}"))
        page.on(
            "console",
            lambda m: m.type in ("error", "warning") and problems.append(f"console {m.type}: {m.text}"),
        )
        page.on("response", lambda r: r.status >= 400 and problems.append(f"{r.status} {r.url}"))

        page.on(
            "request",
            lambda r: (
                r.url.startswith((address, "data:", "blob:"))
                or problems.append(f"asks another host: {r.url}")
            ),
        )
        page.goto(address + name, wait_until="networkidle")
        return page, problems

    yield call
    for page in opened:
        page.close()


@pytest.fixture(scope="session")
def serious():
    """What axe-core finds in an open page, of impact serious or critical; only the package's script is needed."""
    package = importlib.util.find_spec("axe_playwright_python")
    if package is None:
        missing('axe-core is not installed: pip install -e ".[dev]"')
    axe = Path(package.origin).with_name("axe.min.js").read_text(encoding="utf-8")
    find = Path(__file__).with_name("accessible.js").read_text(encoding="utf-8")

    def call(page, scope=("contrast", "rest")) -> list[str]:
        if not scope:
            return []
        page.evaluate(axe)
        return page.evaluate(find[find.index("async") :], list(scope))

    return call
