"""The files around the code agree with each other: pyproject, constraints, environment, toc, citation, README."""

import ast
import pkgutil
import re
import shutil
import subprocess
import sys
import tomllib

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from .counts import PACKAGES, ROOT

IMPORT_NAMES = {
    "sklearn": "scikit-learn",
    "yaml": "pyyaml",
    "umap": "umap-learn",
    "huggingface_hub": "transformers",
    "tokenizers": "transformers",
    "myst_nb": "myst-nb",
    "mpl_toolkits": "matplotlib",
    "IPython": "ipykernel",
    "matplotlib_inline": "ipykernel",
    "triton": "torch",
}  # comes with torch where torch has a GPU

MEASURED_WHERE_THERE = {
    "cut-cross-entropy",
    "liger-kernel",
}  # peers of a benchmark row, which says so without them


@pytest.fixture(scope="module")
def repository():
    return ROOT


@pytest.fixture(scope="module")
def project(repository):
    return tomllib.loads((repository / "pyproject.toml").read_text())["project"]


@pytest.fixture(params=["constraints.txt", "constraints-3.12.txt", "constraints-3.13.txt"])
def pins(repository, request):
    lines = (repository / request.param).read_text().splitlines()
    pins = [line.split("==") for line in lines if not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in pins}


def requirements(project):
    extras = project["optional-dependencies"]
    return [Requirement(r) for r in project["dependencies"] + [r for group in extras.values() for r in group]]


def test_core_has_lower_bounds_only(project):
    for requirement in map(Requirement, project["dependencies"]):
        assert {s.operator for s in requirement.specifier} == {">="}, str(requirement)


def test_every_requirement_is_pinned_within_its_bounds(project, pins):
    for requirement in requirements(project):
        assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)]), str(requirement)


def test_every_tried_python_has_its_constraints_its_classifier_and_its_jobs(repository, project):
    shown = [c.rpartition(" ")[2] for c in project["classifiers"] if re.search(r":: 3\.\d+$", c)]
    assert shown == ["3.11", "3.12", "3.13"] and all(
        map(SpecifierSet(project["requires-python"]).contains, shown)
    )
    first, *later = shown
    files = {path.name for path in repository.glob("constraints*.txt")}
    assert files == {"constraints.txt", *(f"constraints-{version}.txt" for version in later)}
    for name in files:
        version = name.removeprefix("constraints").strip("-.tx") or first
        assert f"Python {version}," in (repository / name).read_text().splitlines()[0]
    jobs = yaml.safe_load((repository / ".github" / "workflows" / "tests.yml").read_text())["jobs"]
    matrix = jobs["without-make"]["strategy"]["matrix"]
    assert matrix["python"] == jobs["wheel"]["strategy"]["matrix"]["python"] == shown
    assert [system.partition("-")[0] for system in matrix["system"]] == ["ubuntu", "macos", "windows"]
    readme = (repository / "README.md").read_text()
    assert all(version in readme for version in shown)


def test_environment_installs_what_pyproject_names(repository, project):
    environment = yaml.safe_load((repository / "environment.yml").read_text())
    assert environment["name"] == project["name"]
    python = next(d for d in environment["dependencies"] if str(d).startswith("python="))
    assert SpecifierSet(project["requires-python"]).contains(python.partition("=")[2])
    assert "pip" in environment["dependencies"]
    (pip,) = [d["pip"] for d in environment["dependencies"] if isinstance(d, dict)]
    assert pip == ["-c constraints.txt", "-e .[book,dev]"]
    assert {"book", "dev"} <= set(project["optional-dependencies"])


def test_the_package_imports_only_what_pyproject_declares(repository, project):
    declared = {canonicalize_name(r.name) for r in requirements(project)} | MEASURED_WHERE_THERE
    ours = set(PACKAGES)
    for path in (p for package in ours for p in (repository / package).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module]
            for top in {name.split(".")[0] for name in names} - sys.stdlib_module_names - ours:
                assert canonicalize_name(IMPORT_NAMES.get(top, top)) in declared, f"{path.name} imports {top}"


def test_toc_names_files_that_exist_and_every_notebook(repository):
    toc = yaml.safe_load((repository / "_toc.yml").read_text())
    named = [toc["root"]] + [c["file"] for part in toc["parts"] for c in part["chapters"]]
    assert len(named) == len(set(named))
    for name in named:
        assert any((repository / f"{name}{end}").exists() for end in (".md", ".ipynb")), name
    assert {f"notebooks/{p.stem}" for p in (repository / "notebooks").glob("*.ipynb")} <= set(named)
    assert {f"book/{p.stem}" for p in (repository / "book").glob("*.md")} <= set(named)


def test_book_configuration_keeps_out_dot_folders_and_other_hosts(repository):
    config = yaml.safe_load((repository / "_config.yml").read_text())
    assert config["only_build_toc_files"] and {".*", "**/.*"} <= set(config["exclude_patterns"])
    assert config["execute"]["execute_notebooks"] == "off"
    assert not config["sphinx"]["config"]["mathjax_path"].startswith("http")


def test_citation_names_this_version_and_the_paper(repository, project):
    citation = yaml.safe_load((repository / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0"
    assert citation["version"] == project["version"] and citation["license"] == project["license"]
    assert citation["repository-code"] == project["urls"]["Repository"]
    assert {"authors", "title", "message"} <= set(citation)
    assert citation["references"][0]["identifiers"][0]["value"] == "arXiv:2502.04315"


def test_license_is_apache(repository):
    assert "Apache License" in (repository / "LICENSE").read_text()[:400]


def fenced(text, *languages):
    return re.findall(rf"```(?:{'|'.join(languages)})\n(.*?)```", text, re.S)


def test_readme_names_targets_the_makefile_has(repository):
    readme, makefile = (repository / "README.md").read_text(), (repository / "Makefile").read_text()
    targets = set(re.findall(r"\bmake ([a-z][\w-]*)", "\n".join(fenced(readme, "sh", "bash", "text"))))
    assert {"book", "test"} <= targets
    for target in targets | set(re.findall(r"make ([a-z][\w-]*)", makefile.split(".PHONY")[0])):
        assert re.search(rf"^{target}:", makefile, re.M), target


def test_readme_names_commands_the_cli_has(repository, project):
    readme = (repository / "README.md").read_text()
    shown = "\n".join(fenced(readme, "sh", "bash"))
    commands = set(re.findall(r"^(?:\.venv/bin/)?chameleon-lite ([a-z]+)", shown, re.M))
    assert commands
    from chameleon_lite.app import cli

    apps = [cli.app, *map(pkgutil.resolve_name, project["entry-points"][cli.COMMANDS].values())]
    assert commands <= {c.name or c.callback.__name__ for app in apps for c in app.registered_commands}


def test_readme_names_every_extra(repository):
    extras = tomllib.loads((repository / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    readme = (repository / "README.md").read_text()
    assert [extra for extra in extras if not re.search(rf"`{extra}`|\[{extra}\]", readme)] == []


def test_readme_links_to_files_that_exist(repository):
    for target in re.findall(r"\]\(([^)#]+)\)|src=\"([^\"]+)\"", (repository / "README.md").read_text()):
        link = target[0] or target[1]
        assert link.startswith("https://") or (repository / link).exists(), link


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_without_a_target_explains_itself(repository):
    run = subprocess.run(
        ["make", "--no-print-directory"], cwd=repository, capture_output=True, text=True, check=True
    )
    assert "make book" in run.stdout and "TORCH_INDEX" in run.stdout and run.stderr == ""


def test_workflows_are_yaml_and_call_the_makefile_or_ci(repository):
    for path in (repository / ".github" / "workflows").glob("*.yml"):
        text = path.read_text()
        assert yaml.safe_load(text)["jobs"]
        for target in re.findall(r"\bmake ([a-z][\w-]*)", text):
            assert re.search(rf"^{target}:", (repository / "Makefile").read_text(), re.M), target


def test_readme_example_runs_and_prints_what_it_says(repository, capsys):
    (example,) = fenced((repository / "README.md").read_text(), "python")
    assert 'load_backbone("smollm2")' in example
    exec(example.replace('"smollm2"', '"tiny"'), {})
    assert capsys.readouterr().out.startswith("torch.Size([1, 4, ")
