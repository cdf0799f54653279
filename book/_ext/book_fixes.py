"""Repairs of Sphinx's input and of the site it makes, and a directive that shows a function from the source.

Scripts: sphinx-thebe adds its inline script twice, also when it is off, and the second is an error in every
page's console. Docstrings: ours are plain text with drawings, not reStructuredText. A third of what the theme
and the notebooks leave in the site is read by no page.
"""

import json
import re
import shutil
from html import escape
from itertools import compress
from pathlib import Path

from docutils import nodes
from sphinx.directives.code import LiteralInclude

DRAWN = re.compile(r"^[ \t]|─|▶", re.M)  # an indented block, or one with drawn arrows
# Source maps, icons in a format older than every browser that runs the pages, translations of the theme's buttons.
UNREAD = ("scripts/*.map", "styles/*.map", "vendor/fontawesome/webfonts/*.ttf", "locales")


class FromSource(LiteralInclude):
    """```{from-source} file.py function: that function's source, copied when the book is built.

    The body is the sentence that viewers show which do not know the directive, such as Colab.
    """

    required_arguments, final_argument_whitespace, has_content = 2, False, True

    def run(self) -> list:
        """The listing with its caption; for a file or function that does not exist the build fails."""
        path, name = self.arguments
        self.arguments = [f"/{path}"]  # from the book's root, which is the project's
        self.options |= {"pyobject": name, "language": "python", "caption": f"`{name}` of `{path}`"}
        return super().run()


def drop_repeated_scripts(app, pagename, templatename, context, doctree) -> None:
    """Keep the first of equal inline scripts."""
    scripts = context.get("script_files", [])
    bodies = [getattr(script, "attributes", {}).get("body") for script in scripts]
    kept = [not body or body not in bodies[:i] for i, body in enumerate(bodies)]
    context["script_files"] = list(compress(scripts, kept))


def describe(app, pagename, templatename, context, doctree) -> None:
    """Title and first full sentence in the page's head, for whoever shows a link to it."""
    if doctree is None:
        return
    texts = (p.astext() for p in doctree.findall(nodes.paragraph) if not list(p.findall(nodes.image)))
    about = next((text for text in texts if len(text) > 40), "").replace("\n", " ")
    facts = {"title": app.env.titles[pagename].astext(), "description": about, "type": "article"}
    facts |= {"url": context.get("pageurl") or "", "site_name": app.config.project}
    tags = (f'<meta property="og:{name}" content="{escape(text)}">' for name, text in facts.items())
    context["metatags"] += f'<meta name="description" content="{escape(about)}">' + "".join(tags)


def tidy_site(app, error) -> None:
    """Remove what no page reads, and outputs from the notebooks one can download; write sitemap.xml."""
    if error or app.builder.name != "html":
        return
    site = Path(app.outdir)
    for path in (p for pattern in UNREAD for p in (site / "_static").glob(pattern)):
        (shutil.rmtree if path.is_dir() else Path.unlink)(path)
    for path in (site / "_sources").rglob("*.ipynb"):
        book = json.loads(path.read_text(encoding="utf-8"))
        for cell in book["cells"]:
            cell |= {"outputs": [], "execution_count": None} if cell["cell_type"] == "code" else {}
        path.write_text(json.dumps(book, ensure_ascii=False), encoding="utf-8")
    urls = (f"<url><loc>{app.config.html_baseurl}{n}.html</loc></url>" for n in sorted(app.env.found_docs))
    space = "http://www.sitemaps.org/schemas/sitemap/0.9"
    (site / "sitemap.xml").write_text(f'<urlset xmlns="{space}">{"".join(urls)}</urlset>', encoding="utf-8")


def plain_docstring(app, what, name, obj, options, lines: list[str]) -> None:
    """Rewrite a docstring in place: indented and drawn blocks stay as they are, the rest is escaped text."""
    out = []
    for block in re.split(r"\n[ \t]*\n", "\n".join(lines).strip("\n")):
        rows = block.split("\n")
        if DRAWN.search(block) and not rows[0].startswith("- "):
            out += ["::", "", *("    " + row for row in rows), ""]
        else:
            out += [*(escaped(row) for row in rows), ""]
    for field, info in (getattr(obj, "model_fields", None) or {}).items() if what == "class" else ():
        default = f"default {info.get_default(call_default_factory=True)!r}"
        start = "required" if info.is_required() else default
        out.append(f"- ``{field}``: {escaped(info.description or '')} ({escaped(start)})")
    lines[:] = [*out, ""]


def short_signature(app, what, name, obj, options, signature, annotation):
    """A settings class lists its fields below; all of them again as arguments would fill a screen."""
    return ("(…)", annotation) if what == "class" and hasattr(obj, "model_fields") else None


def escaped(row: str) -> str:
    """A line of text with `code` as literals and every other sign meaning itself."""
    parts = re.split(r"`+([^`]+)`+", row)
    text = [re.sub(r"([*|_\\<>])", r"\\\1", part) for part in parts[::2]]
    code = [f"``{part.strip()}``\\ " for part in parts[1::2]]
    return "".join(a + b for a, b in zip(text, [*code, ""], strict=True))


def setup(app) -> dict:
    """Called by Sphinx; a late priority, so that every extension has added its scripts."""
    app.setup_extension("sphinx.ext.autodoc")  # whose events are connected to below
    app.add_directive("from-source", FromSource)
    app.connect("html-page-context", drop_repeated_scripts, priority=900)
    app.connect("html-page-context", describe)
    app.connect("build-finished", tidy_site)
    app.connect("autodoc-process-docstring", plain_docstring)
    app.connect("autodoc-process-signature", short_signature)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
