"""Write the versions of this interpreter's environment to constraints-3.xx.txt (constraints.txt for 3.11).

    python3.13 -m venv env && env/bin/python -m pip install -e ".[book,dev]" && env/bin/python -m pytest
    env/bin/python tests/repository/constraints.py

Install first, run the tests, then write: the file says what was tried. Packages that none of the project's
requirements asks for, directly or not, are left out.
"""

import re
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
OLDEST = (3, 11)
# the tools that install, and parts of PyTorch's CUDA build
LEFT_OUT = re.compile(r"(pip|setuptools|wheel|nvidia-.*|cuda-.*)$")
EXTRAS = ("book", "dev", "hub", "cluster", "generate", "notebooks")


def needed(project: str = "chameleon-lite", extras: tuple[str, ...] = EXTRAS) -> dict[str, str]:
    """Name to version of all that an installed project requires here, under the names that packages give themselves."""
    found, todo = {}, [(project, extra) for extra in ("", *extras)]
    seen = set(todo)
    while todo:
        name, extra = todo.pop()
        try:
            package = distribution(name)
        except PackageNotFoundError:
            continue  # of an extra that is not installed
        if canonicalize_name(name) != project and not LEFT_OUT.match(canonicalize_name(name)):
            found[package.metadata["Name"]] = package.version.split("+")[0]
        for text in package.requires or ():
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
                wanted = {(canonicalize_name(requirement.name), e) for e in ("", *requirement.extras)}
                todo += wanted - seen
                seen |= wanted
    return found


def path_of(version: tuple[int, int]) -> Path:
    """The file of constraints for a version of Python."""
    return ROOT / ("constraints.txt" if version == OLDEST else f"constraints-{version[0]}.{version[1]}.txt")


def main() -> None:
    """Write the file of the running Python, with the remarks that it had."""
    path = path_of(sys.version_info[:2])
    lines = (path if path.exists() else path_of(OLDEST)).read_text(encoding="utf-8").splitlines()
    remarks = [re.sub(r"Python 3\.\d+", f"Python 3.{sys.version_info[1]}", x) for x in lines if x[:1] == "#"]
    remarks = [x.replace("constraints.txt", path.name) for x in remarks]
    pins = sorted((f"{name}=={version}" for name, version in needed().items()), key=str.lower)
    path.write_text("\n".join([*remarks, *pins, ""]), encoding="utf-8")


if __name__ == "__main__":
    main()
