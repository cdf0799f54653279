"""Colab, Kaggle and Binder: the install cell fetches the project and replaces nothing that a service ships."""

import json
import os
import re
import subprocess
import sys
import sysconfig
import tomllib
from importlib.metadata import requires
from pathlib import Path

import nbformat
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from .counts import ROOT

SERVICE = yaml.safe_load((ROOT / "tests/repository/services.yaml").read_text())["colab"]
SHIPPED = {canonicalize_name(name): str(version) for name, version in SERVICE["packages"].items()}
PRESENT = {canonicalize_name(name) for name in SERVICE["present"]}
ADDED = {"gguf"}  # what the cell installs there beside the project
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
URL = "https://github.com/chameleon-lite/chameleon-lite"


def of_notebooks() -> list[Requirement]:
    return [*map(Requirement, PROJECT["dependencies"] + PROJECT["optional-dependencies"]["notebooks"])]


def test_what_colab_ships_satisfies_every_requirement():
    assert SpecifierSet(PROJECT["requires-python"]).contains(SERVICE["python"])
    for requirement in of_notebooks():
        name = canonicalize_name(requirement.name)
        assert name in SHIPPED or name in PRESENT | ADDED, f"{name} would be installed there"
        if name in SHIPPED:
            assert requirement.specifier.contains(SHIPPED[name]), f"{requirement} replaces {SHIPPED[name]}"


def test_what_is_added_there_replaces_nothing_either():
    for text in [text for name in ADDED for text in requires(name) or ()]:
        requirement = Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            version = SHIPPED.get(canonicalize_name(requirement.name))
            assert version is None or requirement.specifier.contains(version), text


def test_the_extra_for_notebooks_leaves_the_kernel_alone():
    kernel = {"ipykernel", "ipython", "jupyter-client", "jupyter-book", "papermill"}
    assert not kernel & {canonicalize_name(r.name) for r in of_notebooks()}
    book = next(
        r for r in map(Requirement, PROJECT["optional-dependencies"]["book"]) if r.name == "ipykernel"
    )
    assert not book.specifier.contains(SHIPPED["ipykernel"])  # so the cell must not install `book`
    assert "[book" not in cell()


def cell() -> str:
    """The install cell, which every notebook has (see tests/book/test_notebooks.py)."""
    return nbformat.read(ROOT / "notebooks" / "00_answer.ipynb", as_version=4).cells[1].source


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    """An environment as a service has it: this one's packages below its own, pip, no network."""
    folder = tmp_path_factory.mktemp("service")
    subprocess.run([sys.executable, "-m", "venv", folder / "env"], check=True)
    python = folder / "env" / ("Scripts" if os.name == "nt" else "bin") / "python"
    pip = [python, "-m", "pip", "--disable-pip-version-check"]
    subprocess.run([*pip, "uninstall", "-qq", "-y", "setuptools"], check=True)  # the shipped one shows then
    ask = "import sysconfig; print(sysconfig.get_path('purelib'))"
    own = subprocess.run([python, "-c", ask], capture_output=True, text=True, check=True).stdout.strip()
    (Path(own) / "shipped.pth").write_text(sysconfig.get_path("purelib"))
    return python


def versions(python) -> dict[str, str]:
    command = [python, "-m", "pip", "list", "--format=json", "--disable-pip-version-check"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {canonicalize_name(p["name"]): p["version"] for p in json.loads(listed)} | {"chameleon-lite": ""}


def run_cell(python, place: Path, service: str):
    """Run the cell under IPython as a service would; its process. The clone comes from this repository."""
    place.mkdir(exist_ok=True)
    source = re.sub(r'"/(content|kaggle/working)"', repr(str(place)), cell())
    before = "import sys, types\n"
    if service == "colab":
        before += "sys.modules['google.colab'] = types.ModuleType('google.colab')\n"
    after = "\nprint('in', os.getcwd())\n"
    if service in ("colab", "kaggle"):
        after += "import chameleon_lite\nprint('from', chameleon_lite.__file__)\n"
    (place / "cell.ipy").write_text(before + source + after)
    rewrite = {"GIT_CONFIG_COUNT": "2", "GIT_CONFIG_KEY_0": f"url.{ROOT}.insteadOf"}
    rewrite |= {"GIT_CONFIG_VALUE_0": URL, "GIT_CONFIG_KEY_1": "safe.directory", "GIT_CONFIG_VALUE_1": "*"}
    cut = {"PIP_NO_INDEX": "1", "PIP_NO_BUILD_ISOLATION": "0", "PIP_CONFIG_FILE": os.devnull}
    cut |= {"PIP_FIND_LINKS": "", "http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9"}
    kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "KAGGLE_KERNEL_RUN_TYPE")}
    kaggle = {"KAGGLE_KERNEL_RUN_TYPE": "Interactive"} if service == "kaggle" else {}
    environment = kept | rewrite | cut | kaggle | {"IPYTHONDIR": str(place / "ipython")}
    command = [python, "-m", "IPython", "--no-banner", "--colors=NoColor", place / "cell.ipy"]
    return subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a git checkout")
def test_the_cell_installs_without_a_network_and_changes_no_version(service, tmp_path):
    pytest.importorskip("IPython")
    before = versions(service)
    for name in ("colab", "kaggle"):  # the second where the first has been: the cell may be run again
        run = run_cell(service, tmp_path / "place", name)
        assert run.returncode == 0 and "ERROR" not in run.stdout + run.stderr, run.stdout + run.stderr
        clone = tmp_path / "place" / "chameleon-lite"
        assert f"in {clone}\nfrom {clone}" in run.stdout
    assert versions(service) == before


@pytest.mark.slow
@pytest.mark.parametrize("name", ["binder", "a clone"])
def test_elsewhere_the_cell_does_nothing(service, tmp_path, name):
    pytest.importorskip("IPython")
    run = run_cell(service, tmp_path / "place", name)
    assert f"in {tmp_path / 'place'}\n" in run.stdout, run.stdout + run.stderr
    assert {p.name for p in (tmp_path / "place").iterdir()} <= {"cell.ipy", "ipython"}


def test_without_a_network_on_kaggle_the_cell_says_what_to_do():
    assert "switch Internet on" in cell()


def test_binder_installs_after_the_tree_is_there():
    environment = yaml.safe_load((ROOT / ".binder" / "environment.yml").read_text())
    assert all(isinstance(d, str) and "-e" not in d for d in environment["dependencies"])
    python = next(d for d in environment["dependencies"] if d.startswith("python="))
    assert SpecifierSet(PROJECT["requires-python"]).contains(python.partition("=")[2])
    script = ROOT / ".binder" / "postBuild"
    assert os.access(script, os.X_OK) and script.read_text().startswith("#!/usr/bin/env bash\nset -e")
    assert '-c constraints.txt -e ".[notebooks]"' in script.read_text()
    assert not (ROOT / "environment.yml").read_text().count("repo2docker")
