"""The README: its numbers come from the records, its figure is drawn from them, and its commands run."""

import json
import random
import re
import shlex
import shutil
import sys

import pytest

from chameleon_lite.app import cli

from . import answer
from .counts import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
RESULTS = ROOT / "results"
NOT_RUN = {  # start of a command -> why it is not run here
    "git clone": "needs the network",
    "make": "CI runs these targets themselves",
    "python3 -m venv": "makes an environment; CI does so on three systems",
    ".venv/bin/python -m pip": "installs; CI does so on three systems",
    ".venv/bin/python book/build.py": "ten minutes; CI runs it",
    ".venv/bin/python -m pytest": "runs this test",
    "chameleon-lite run": "minutes; tests/study/test_cli.py runs the command on made-up text",
    "chameleon-lite prove": "minutes; tests/study/proofs makes the proofs on made-up text",
    "chameleon-lite bench": "minutes; tests/bench runs it on small shapes",
}
WORDS = "sea salt tide boat gull wave net rope mast crab".split()


def commands() -> list[str]:
    """The lines of the README's shell blocks without their remarks, in order."""
    blocks = "\n".join(re.findall(r"```sh\n(.*?)```", README, re.S))
    return [line.split("  #")[0].strip() for line in blocks.splitlines() if line.strip()]


def test_the_answer_the_figure_and_the_table_are_those_of_the_records():
    assert answer.page(README, RESULTS) == README, "run python tests/repository/answer.py"
    assert answer.drawing(RESULTS) == (ROOT / answer.FIGURE).read_text(encoding="utf-8")
    before = README.split(answer.START)[0]
    assert not re.search(r"\d\.\d|^\|", before.replace("2502.04315", ""), re.M) and "<img" not in before


def test_the_sentences_of_the_answer_hold():
    corpora = answer.measured(RESULTS)
    assert len(corpora) == 5 and all(set(of) == {"R0", *answer.HEADS} for of in corpora.values())
    for of in corpora.values():
        loss = {regime: row["loss"] for regime, row in of.items()}
        assert loss["R4-best"] < loss["R0"] and loss["R19-R2"] < loss["R4-best"]
        assert abs(loss["R4-best"] - loss["R19-R1"]) < 0.02  # "about as well"
        assert abs(loss["R4-best"] - loss["R3-best"]) < 0.01  # "adds little"
        assert {of[regime]["n seeds"] for regime in answer.HEADS} == {5}
        assert max(row["gain"][2] for row in of.values()) < answer.MOST  # inside the panel
    known = answer.stored_verdicts(RESULTS)
    words = {part: {cell["verdict"] for cell in known[part]["cells"].values()} for part in ("3c", "3d")}
    assert words == {"3c": {"contradicted"}, "3d": {"not decidable here", "supported"}}
    reads = known["3d"]["cells"]["planted-few"]["number"].split("R4-best<R3-best ")[1]
    assert float(re.search(r", ([-+.\d]+)\]", reads)[1]) < 0  # "uses its batch", with the whole interval
    head, *_, plain = map(float, re.findall(r"([\d.]+)%", known["3d"]["cells"]["planted-few"]["number"]))
    assert abs(head - plain) < 1  # "gains nothing by it"
    lines = [x for p in RESULTS.glob("*-released*.jsonl") for x in p.read_text(encoding="utf-8").splitlines()]
    released = [json.loads(line) for line in lines]
    assert {run["backbone"] for run in released} == {"smollm2"}  # GPT-2 was not run
    padded = [1 - run["metrics"]["full_rows"] / run["metrics"]["rows"] for run in released]
    said = re.search(r"([\d.]+%) to ([\d.]+%) of these are padding", README).groups()
    assert said == (f"{min(padded):.1%}", f"{max(padded):.1%}")  # of every released table, also the largest


def test_every_command_is_run_or_has_its_reason():
    shown = commands()
    assert len(shown) > 15
    for start in NOT_RUN:
        assert any(line.startswith(start) for line in shown), f"{start!r} is no longer shown"
    assert [line for line in shown if not line.startswith((*NOT_RUN, "chameleon-lite "))] == []


def test_the_commands_run_in_their_order(tmp_path, monkeypatch, capsys):
    draw = random.Random(0)
    for name in ("texts", "more"):
        rows = [{"text": " ".join(draw.choices(WORDS, k=40))} for _ in range(50)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name in ("results", "benchmarks", "experiments"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CHAMELEON_LITE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for line in commands():
        if line.startswith(tuple(NOT_RUN)):
            continue
        words = shlex.split(line.replace("smollm2", "tiny"))[1:]
        monkeypatch.setattr(sys, "argv", ["chameleon-lite", *words])
        try:
            cli.main()
        except SystemExit as stop:
            assert not stop.code, (line, capsys.readouterr().err)
        assert capsys.readouterr().out.strip(), line
    written = {path.name for path in tmp_path.iterdir() if not path.is_symlink()}
    assert {"my-adapter", "for-peft", "merged", "scores.jsonl", "answers.jsonl", "learned.jsonl"} <= written
    assert len((tmp_path / "scores.jsonl").read_text().splitlines()) == 50


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_the_way_without_make_is_that_of_the_makefile():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert "-e '.[book,dev]'" in makefile and "$(BIN)/python book/build.py" in makefile
    shown = "\n".join(commands())
    assert '-c constraints.txt -e ".[book,dev]"' in shown and ".venv/bin/python -m pytest" in shown
