"""A model's folder from somewhere: no code of it is run, whatever the command and whatever is answered to it."""

import ast
import io
import json
from pathlib import Path

import pytest

from chameleon_lite.backbone import load_backbone
from chameleon_lite.chameleon import ChameleonLiteForCausalLM

ROOT = Path(__file__).parents[2]
PACKAGES = ("chameleon_lite", "chameleon_study", "chameleon_bench", "book", "experiments", "tests")
CODE = """
from pathlib import Path
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

Path({trace!r}).touch()


class OwnConfig(GPT2Config):
    model_type = {kind!r}


class OwnModel(GPT2LMHeadModel):
    config_class = OwnConfig


class OwnTokenizer(PreTrainedTokenizerFast):
    pass
"""
EXPERIMENT = """
name: small
backbone: {backbone}
corpora: [{corpus}]
regimes: [R0, R1]
learning_rates: {{R1: 0.01}}
tokens: {{max_length: 64, prefix_tokens: 8, min_scored: 4}}
"""


def changed(path: Path, **changes) -> None:
    """A JSON file with some of its keys changed."""
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.fixture
def with_code(model_folder, tmp_path, monkeypatch):
    """with_code(kind) → the folder, which names classes of its own, and the file that its code leaves when it is run.

    Every question on the terminal is answered with yes.
    """

    def make(kind: str) -> tuple[Path, Path]:
        trace = tmp_path / "trace"
        folder = model_folder
        (folder / "own.py").write_text(CODE.format(trace=str(trace), kind=kind))
        classes = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
        changed(folder / "config.json", model_type=kind, auto_map=classes)
        changed(
            folder / "tokenizer_config.json",
            tokenizer_class="OwnTokenizer",
            auto_map={"AutoTokenizer": [None, "own.OwnTokenizer"]},
        )
        monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 99))
        return folder, trace

    return make


def test_the_code_of_the_folder_would_run_where_it_is_trusted(with_code, tmp_path, monkeypatch):
    from transformers import AutoConfig, dynamic_module_utils

    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr("sys.path", [*__import__("sys").path, str(tmp_path / "modules")])
    folder, trace = with_code("own")
    AutoConfig.from_pretrained(folder, trust_remote_code=True)
    assert trace.exists()


@pytest.mark.parametrize("kind", ["gpt2", "own"])
@pytest.mark.parametrize("name", ["fit", "params", "run", "prove"])
def test_no_command_runs_the_code_of_a_folder(command, with_code, texts, tmp_path, name, kind):
    folder, trace = with_code(kind)
    (tmp_path / "small.yaml").write_text(EXPERIMENT.format(backbone=folder, corpus=texts))
    words = {
        "fit": [texts, "--backbone", folder, "--out", "a"],
        "params": ["--backbone", folder],
        "run": [tmp_path / "small.yaml", "--out", "runs"],
        "prove": [tmp_path / "small.yaml", "--only", "p01"],
    }
    code, _, err = command(name, *words[name])
    assert not trace.exists() and "Traceback" not in err and "not foreseen" not in err
    if kind == "own":
        assert code == 2 and len(err.strip().splitlines()) == 1, err
        assert name == "prove" or "cannot be loaded: it needs code of its own, which is never run" in err


def test_an_adapter_that_names_a_backbone_with_code_runs_none(refused, with_code, texts, tmp_path):
    folder, trace = with_code("gpt2")
    ChameleonLiteForCausalLM.from_backbone(load_backbone(str(folder))).save_pretrained(tmp_path / "adapter")
    with_code("own")
    refused(
        "adapt",
        texts,
        "--model",
        tmp_path / "adapter",
        "--out",
        "r.jsonl",
        says="code of its own, which is never",
    )
    assert not trace.exists()


def test_every_call_that_loads_by_name_forbids_code():
    calls = []
    for path in (p for name in PACKAGES for p in (ROOT / name).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                continue
            owner = node.func.value.id if isinstance(node.func.value, ast.Name) else ""
            if owner.startswith("Auto") and node.func.attr in ("from_pretrained", "from_config"):
                words = {w.arg: w.value for w in node.keywords}
                trust = words.get("trust_remote_code")
                calls.append(f"{path.relative_to(ROOT)}:{node.lineno}")
                if path.parts[-3:-1] == ("tests", "app") and path.name == Path(__file__).name:
                    continue  # the one call above that has to run it
                assert isinstance(trust, ast.Constant) and trust.value is False, calls[-1]
    assert len(calls) > 5


def test_nothing_reads_a_pickle_or_evaluates_text():
    forbidden = {"torch.load", "pickle.load", "pickle.loads", "joblib.load", "yaml.load", "os.system"}
    for path in (p for name in PACKAGES[:4] for p in (ROOT / name).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                where = f"{path.relative_to(ROOT)}:{node.lineno}"
                assert ast.unparse(node.func) not in forbidden | {"eval", "exec"}, where
                for word in node.keywords:
                    wrong = {"allow_pickle": True, "shell": True}.get(word.arg)
                    assert wrong is None or ast.unparse(word.value) != "True", where
