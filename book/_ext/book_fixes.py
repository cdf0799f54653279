"""Two repairs of Sphinx's input, and a directive that shows a function from the source.

Scripts: sphinx-thebe adds its inline script twice, also when it is off, and the second is an error in every
page's console. Docstrings: ours are plain text with drawings, not reStructuredText.
"""

import re
from itertools import compress

from sphinx.directives.code import LiteralInclude

DRAWN = re.compile(r"^[ \t]|─|▶", re.M)  # an indented block, or one with drawn arrows


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
    app.connect("autodoc-process-docstring", plain_docstring)
    app.connect("autodoc-process-signature", short_signature)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
