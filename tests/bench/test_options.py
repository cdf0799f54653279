"""Whatever is given to `bench`: rows with a status in its file, or one line and another exit code than 0."""

import json
import sys

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chameleon_lite.app import cli

STORED = b'{"machine": {"device": "cpu"}, "rows": {"B1": {"status": "met"}, "workers": {"status": "shown"}}}'
FOREIGN = [
    b"",
    bytes(64),
    b"[]",
    b"{}\n",
    b"null",
    b'{"rows": {}}',
    b'{"rows": {"B1": {}}}',
    b"\xff\xfe{",
    b"[" * 9,
]
FOREIGN += [
    b"[" * 60_000,
    b'{"rows": ' + b"9" * 5_000 + b"}",
    b'{"rows": {"\\ud800": {"status": "met"}}}',
    b"PAR1",
]
# the one row that is over at once where there are not two GPUs, and words near it
ROWS = st.sampled_from(["workers"] * 6 + ["worker", "B51", "", "b5", "B5,B6", "../x", "a\nb", "*", "\ud800"])
DEVICES = [
    None,
    None,
    None,
    "cpu",
    "cpu",
    "cpu:7",
    "CPU",
    "",
    "cuda:99",
    "cuda:-1",
    "mps:3",
    "meta",
    "x" * 300,
    "a\0b",
]
PLACES = ["x.json"] * 6 + [
    "new/folder/x.json",
    "folder",
    "file/x.json",
    "loop",
    "n" * 300,
    "a\0b",
    "",
    ".",
    "x.json/",
]
SETTINGS = {"deadline": None, "derandomize": True, "suppress_health_check": list(HealthCheck)}


@pytest.fixture
def bench(monkeypatch, capsys, tmp_path):
    """bench(words) → (exit code, stdout, lines on stderr), in an own folder."""
    monkeypatch.chdir(tmp_path)

    def call(words):
        monkeypatch.setattr(sys, "argv", ["chameleon-lite", "bench", *words])
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = stop.code or 0
        out, err = capsys.readouterr()
        return code, out, [line for line in err.splitlines() if line]

    return call


def judged(code, out, lines, path, rows):
    """Whether a command ended as promised."""
    if code:
        assert code in (1, 2) and len(lines) == 1 and "not foreseen" not in lines[0], lines
        return
    kept = json.loads(path.read_bytes())
    assert not lines and all(kept["rows"][row]["status"] and f"{row} " in out for row in rows)


@settings(max_examples=40, **SETTINGS)
@given(
    st.lists(ROWS, min_size=1, max_size=3), st.sampled_from(DEVICES), st.sampled_from(PLACES), st.booleans()
)
def test_any_options_are_a_result_or_one_line(bench, tmp_path, rows, device, place, quick):
    (tmp_path / "folder").mkdir(exist_ok=True)
    (tmp_path / "file").write_text("kept")
    if not (tmp_path / "loop").is_symlink():
        (tmp_path / "loop").symlink_to("loop")
    words = [*rows, *(["--device", device] if device is not None else []), "--out", place]
    code, out, lines = bench([*words, *["--quick"] * quick])
    judged(code, out, lines, tmp_path / place.replace("\0", ""), rows)
    assert code == 0 or set(rows) != {"workers"} or device not in (None, "cpu") or place not in PLACES[:7]
    assert (tmp_path / "file").read_text() == "kept" and not list((tmp_path / "folder").iterdir())


@settings(max_examples=40, **SETTINGS)
@given(st.integers(0, len(STORED)), st.integers(0, 30), st.binary(max_size=8) | st.sampled_from(FOREIGN))
def test_any_file_that_is_there_is_added_to_or_named_and_kept(bench, tmp_path, start, length, put):
    path = tmp_path / "cpu.json"
    content = STORED[:start] + put + STORED[start + length :]
    path.write_bytes(content)
    code, out, lines = bench(["workers", "--device", "cpu", "--quick", "--out", str(path)])
    judged(code, out, lines, path, ["workers"])
    assert code == 0 or (str(path) in lines[0] and path.read_bytes() == content)


@pytest.mark.parametrize("content", FOREIGN)
def test_a_foreign_file_is_named_and_kept(bench, tmp_path, content):
    path = tmp_path / "cpu.json"
    path.write_bytes(content)
    code, out, lines = bench(["workers", "--device", "cpu", "--quick", "--out", str(path)])
    judged(code, out, lines, path, ["workers"])
    assert code == 0 or (str(path) in lines[0] and path.read_bytes() == content)
