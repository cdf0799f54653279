"""Sealed JSON files: what was written is read, anything else is named."""

import json

import pytest

from chameleon_lite import files
from chameleon_lite.errors import DamagedFile

CONTENT = {"name": "Ünïcode", 3: (1, 2.5), "nothing": None, "nan": float("inf"), 10: {"b": 1, "a": []}}


def test_a_sealed_file_gives_back_its_content(tmp_path):
    files.write_sealed(tmp_path / "below" / "a.json", CONTENT)
    assert files.read_sealed(tmp_path / "below" / "a.json") == json.loads(json.dumps(CONTENT))


def test_every_flipped_bit_of_a_sealed_file_is_seen(tmp_path):
    path = tmp_path / "a.json"
    files.write_sealed(path, {"loss": 5.25, "rows": [1, 2], "ok": True})
    whole = path.read_bytes()
    content = files.read_sealed(path)
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        try:
            assert (
                files.read_sealed(path) == content
            )  # only white space can change without a change of content
        except DamagedFile as error:
            assert str(path) in str(error)


@pytest.mark.parametrize(
    "text", [b"", b"\0" * 64, b"\xff\xfe{}", b"[]", b"5", b"{}", b'{"seal": 5}', b"[" * 100_000, b'{"a": 1']
)
def test_a_file_that_is_no_sealed_object_is_named(tmp_path, text):
    (tmp_path / "a.json").write_bytes(text)
    with pytest.raises(DamagedFile, match=r"a\.json is damaged"):
        files.read_sealed(tmp_path / "a.json")


def test_the_content_of_another_sealed_file_is_refused(tmp_path):
    files.write_sealed(tmp_path / "a.json", {"seed": 1})
    other = json.loads((tmp_path / "a.json").read_text()) | {"seed": 2}
    (tmp_path / "a.json").write_text(json.dumps(other))
    with pytest.raises(DamagedFile):
        files.read_sealed(tmp_path / "a.json")


def test_a_file_that_is_absent_is_not_damaged(tmp_path):
    with pytest.raises(FileNotFoundError):
        files.read_sealed(tmp_path / "a.json")
