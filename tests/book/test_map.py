"""The design page, the README and the package's docstring show the same house, and it is the one that is there."""

import re

import pytest

import chameleon_lite
from chameleon_lite import engine

from ..repository.counts import CORE, PACKAGES, STEPS
from ..repository.test_house import FILE_LINES, FUNCTION_LINES, MOST, ORDER


@pytest.fixture(scope="module")
def design(repository):
    return (repository / "book" / "design.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def readme(repository):
    return (repository / "README.md").read_text(encoding="utf-8")


def test_the_reading_order_is_the_same_everywhere(design, readme):
    order = " → ".join(STEPS)
    assert order in design and order in readme and order in " ".join(chameleon_lite.__doc__.split())
    assert re.findall(r"^\| `(\w+)\.py` \| .+ \| .+ \|$", design, re.M) == list(STEPS)


def test_the_import_order_is_the_house_tests(design):
    assert " ".join(ORDER) in design.replace("\n", " ")


def test_every_door_and_no_other_has_its_row(design):
    rows = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \| `[\w/]+\.py`: ", design, re.M)
    assert {door for row in rows for door in re.findall(r"\w+", row)} == set(engine.DOORS)
    assert all(f"`{name}`" in design for name in engine.ENGINES) and engine.VARIABLE in design


def test_files_and_folders_on_the_map_exist(design, readme, repository):
    for name in (*PACKAGES, *(f"chameleon_lite/{p.name}" for p in CORE.iterdir() if list(p.glob("*.py")))):
        assert f"`{name}/" in readme, name
    for cell in re.findall(r"^\| (`.+?) \|", design, re.M):
        for name in re.findall(r"`([\w/]+(?:\.py|/))`", cell):
            assert [p for p in (repository, *map(repository.joinpath, PACKAGES)) if (p / name).exists()], name


def test_the_ceilings_are_the_house_tests(design):
    size = design.partition("## Size")[2]
    for most in (*MOST.values(), FILE_LINES, FUNCTION_LINES):
        assert re.search(rf"\b{most:,}\b", size), most
    assert "make count" in size
