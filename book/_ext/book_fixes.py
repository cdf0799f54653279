"""A repair of the pages' scripts, without which every page reports an error in the browser's console."""


def drop_repeated_scripts(app, pagename, templatename, context, doctree) -> None:
    """sphinx-thebe adds its inline script twice, also when it is off; the second declaration is an error."""
    seen, kept = set(), []
    for script in context.get("script_files", []):
        body = getattr(script, "attributes", {}).get("body")
        if body is None or body not in seen:
            kept.append(script)
        seen.add(body)
    context["script_files"] = kept


def setup(app) -> dict:
    """Called by Sphinx; a late priority, so that every extension has added its scripts."""
    app.connect("html-page-context", drop_repeated_scripts, priority=900)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
