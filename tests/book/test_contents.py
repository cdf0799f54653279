"""The table of contents: its order is the order of the files, numbers come from it, old addresses lead on."""

import re

import pytest
import yaml


@pytest.fixture(scope="module")
def parts(repository):
    return yaml.safe_load((repository / "_toc.yml").read_text())["parts"]


def test_files_lie_in_the_order_of_the_contents(parts):
    names = [chapter["file"] for part in parts for chapter in part["chapters"]]
    notebooks = [name for name in names if name.startswith("notebooks/")]
    assert notebooks == sorted(notebooks) and len(set(names)) == len(names)


def test_chapters_are_numbered_by_the_contents(parts):
    for part in parts:
        files = [chapter["file"] for chapter in part["chapters"]]
        chapters = all(re.match(r"notebooks/\d\d", name) and "00_" not in name for name in files)
        assert part.get("numbered") == (1 if chapters else None), part["caption"]


def test_old_addresses_lead_to_pages_of_the_contents(parts, repository):
    pages = {chapter["file"] for part in parts for chapter in part["chapters"]}
    folder = repository / "book" / "_redirects"
    moved = sorted(folder.rglob("*.html"))
    assert moved
    for path in moved:
        old = path.relative_to(folder).with_suffix("").as_posix()
        (new,) = set(re.findall(r'(?:url=|href=")([\w.]+)"', path.read_text()))
        assert old not in pages and f"{old.rpartition('/')[0]}/{new.removesuffix('.html')}" in pages
