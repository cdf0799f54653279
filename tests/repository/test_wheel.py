"""What the build ships: the wheel is the method alone and works by itself, the source archive holds everything."""

import json
import os
import random
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from .counts import PACKAGES, ROOT

pytestmark = pytest.mark.slow
WORDS = "the mean of a batch tells what kind of text it holds and little else return x if None".split()
EDITABLE = "import sys; from hatchling.build import build_editable; build_editable(sys.argv[1])"


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The wheel and the source archive, built by the backend that pip calls."""
    folder = tmp_path_factory.mktemp("built")
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-d", folder], cwd=ROOT, check=True)
    (wheel,), (archive,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    return wheel, archive


def environment(folder: Path, wheel: Path) -> Path:
    """A new environment that has the wheel and this one's libraries, but not this one's editable install.

    The libraries join by a .pth file, whose folders are searched without reading the .pth files inside them.
    """
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    pip = [sys.executable, "-m", "pip", "--python", folder / "bin" / "python"]
    subprocess.run([*pip, "install", "-qq", "--no-deps", "--no-index", wheel], check=True)
    libraries = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    (packages,) = folder.glob("lib/python*/site-packages")
    (packages / "libraries.pth").write_text("\n".join(libraries) + "\n")
    return folder / "bin"


@pytest.fixture(scope="module")
def alone(built, tmp_path_factory):
    """Runs a program of an environment that has the wheel alone, in an empty folder."""
    folder = tmp_path_factory.mktemp("alone")
    return runner(environment(folder / "env", built[0]), folder)


def runner(programs: Path, folder: Path):
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    variables |= {"HF_HUB_OFFLINE": "1", "CHAMELEON_LITE_HOME": str(folder / "cache"), "COLUMNS": "80"}

    def run(program, *arguments):
        command = [programs / program, *map(str, arguments)]
        return subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True)

    run.folder = folder
    return run


def test_the_wheel_holds_the_method_and_nothing_else(built):
    names = {name for name in zipfile.ZipFile(built[0]).namelist() if ".dist-info/" not in name}
    files = {
        p for p in (ROOT / "chameleon_lite").rglob("*") if p.is_file() and p.parent.name != "__pycache__"
    }
    assert names == {str(p.relative_to(ROOT)) for p in files}
    assert "chameleon_lite/py.typed" in names


def test_the_source_archive_holds_every_file_of_the_clone(built):
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    names = {name.partition("/")[2] for name in tarfile.open(built[1]).getnames()}
    assert {name for name in filter(None, listed.stdout.split("\0")) if (ROOT / name).exists()} <= names


def test_the_wheel_alone_has_its_commands_and_names_those_of_the_clone(alone):
    shown = alone("chameleon-lite", "--help")
    assert shown.returncode == 0 and shown.stderr == ""
    commands = {line.split()[1] for line in shown.stdout.splitlines() if line.startswith("│ ")}
    assert {"doctor", "fetch", "corpus", "fit", "adapt"} <= commands and not commands & {"run", "bench"}
    assert "run, prove" in shown.stdout and "clone" in shown.stdout
    for package in PACKAGES[1:]:
        assert "ModuleNotFoundError" in alone("python", "-c", f"import {package}").stderr


@pytest.mark.parametrize(
    "arguments", [("run", "x.yaml"), ("bench",), ("fit", "docstrings", "--backbone", "tiny", "--out", "x")]
)
def test_what_only_the_clone_has_is_one_line_that_names_the_clone(alone, arguments):
    done = alone("chameleon-lite", *arguments)
    (line,) = done.stderr.splitlines()
    assert done.returncode == 2 and done.stdout == ""
    assert line.startswith("chameleon-lite: ") and "come with a clone of the repository" in line


def test_the_wheel_alone_fits_and_adapts(alone):
    draw = random.Random(0)
    rows = [json.dumps({"text": " ".join(draw.choices(WORDS, k=12))}) for _ in range(60)]
    (alone.folder / "texts.jsonl").write_text("\n".join(rows))
    doctor = alone("chameleon-lite", "doctor")
    assert doctor.returncode == 0 and "  torch 2" in doctor.stdout
    fit = ["fit", "texts.jsonl", "--backbone", "tiny", "--out", "adapter", "--epochs", "1"]
    adapt = ["adapt", "texts.jsonl", "--model", "adapter", "--out", "results.jsonl"]
    both = alone("python", "-c", f"from chameleon_lite.app.cli import main; main({fit}); main({adapt})")
    assert both.returncode == 0 and "saved to adapter" in both.stdout, both.stderr
    results = [json.loads(line) for line in (alone.folder / "results.jsonl").read_text().splitlines()]
    assert len(results) == 60 and all(0 < r["loss"] < 100 and 0 < r["loss_frozen"] < 100 for r in results)


def test_an_editable_install_finds_all_three_packages(tmp_path):
    subprocess.run([sys.executable, "-c", EDITABLE, tmp_path], cwd=ROOT, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    run = runner(environment(tmp_path / "env", wheel), tmp_path)
    code = f"import {', '.join(PACKAGES)}; print(*(p.__path__[0] for p in ({', '.join(PACKAGES)})))"
    assert run("python", "-c", code).stdout.split() == [str(ROOT / package) for package in PACKAGES]
    shown = run("chameleon-lite", "--help").stdout
    assert all(f"│ {command} " in shown for command in ("fit", "run", "bench")) and "clone" not in shown
