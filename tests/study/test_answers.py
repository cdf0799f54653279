"""What an Instruct model continues with its template, counted, and the way the record of it is made."""

import json

import pytest

from chameleon_lite.app.fit_settings import FitSettings
from chameleon_lite.app.stream import adapt
from chameleon_lite.backbone import load_backbone
from chameleon_lite.chameleon import ChameleonLiteForCausalLM
from chameleon_study import answers, stored
from chameleon_study.provenance import ROOT

HOW = {"tokens": {"max_length": 64}, "train": {"epochs": 6, "rows_per_step": 16}}
SMALL = FitSettings(head="lora", learning_rate=0.05, **HOW)
NOUNS = "mean batch token loss head rank seed word text row".split()


def check(record: dict) -> None:
    """Counts are what the lengths give, and trained and frozen were counted on the same prompts."""
    for found in record["continuations"].values():
        pairs = list(zip(found["tokens"], record["reference_tokens"], strict=True))
        short = [tokens for tokens, reference in pairs if reference <= record["short"]]
        assert found["prompts"] == len(pairs) >= found["non-empty"] + found["failed"]
        assert found["short references"] == len(short)
        assert found["stopped"] == sum(tokens < record["limit"] for tokens in short)
        assert all(0 <= tokens <= record["limit"] for tokens in found["tokens"])
        assert len(found["sha256"]) == 64


def rows(number: int) -> list[dict]:
    """Instructions with answers of one to many words."""
    words = [" ".join(NOUNS[(i + j) % 10] for j in range(1 + i % 9)) for i in range(number)]
    return [
        {"instruction": f"Say {i} of {w}", "input": "", "output": f"{w} {i}"} for i, w in enumerate(words)
    ]


def test_trained_and_frozen_continuations_are_counted(tmp_path, monkeypatch):
    monkeypatch.setenv("CHAMELEON_LITE_HOME", str(tmp_path / "home"))
    given, backbone = rows(90), load_backbone("tiny")
    record = answers.measured(given, backbone, SMALL, 10, 6)
    check(json.loads(json.dumps(record, allow_nan=False)))
    assert record["rows"] == 80 and record["chat"] is False
    assert record["reference_tokens"] == [len(row["output"].encode()) for row in given[-10:]]
    prompts = [{"instruction": row["instruction"]} for row in given[-10:]]
    plain = adapt(
        ChameleonLiteForCausalLM.from_backbone(backbone, rank=4, head="lora"), prompts, new_tokens=6
    )
    alone = answers.counted(plain, record["reference_tokens"], 6)
    assert record["continuations"]["frozen"] == alone != record["continuations"]["trained"]


def test_failed_and_empty_continuations_count_as_such():
    results = [
        {"error": "no prompt"},
        {"tokens": 0, "continuation": " \n"},
        {"tokens": 3, "continuation": "ab"},
    ]
    found = answers.counted(results, [2, 32, 33], 4)
    assert (found["failed"], found["non-empty"], found["short references"], found["stopped"]) == (1, 1, 2, 1)


def test_the_stored_record():
    path = ROOT / "results" / stored.ANSWERS
    if not path.is_file():
        pytest.skip("the prompts have not been continued")
    record = json.loads(stored.read(path))
    check(record)
    assert FitSettings(**record["settings"]) == answers.SETTINGS and record["backbone"] == "smollm2"
    assert record["chat"] is True and record["limit"] == answers.NEW_TOKENS
    assert record["command"] == "python -m chameleon_study.answers DATA" and len(record["commit"]) == 40
    assert record["short"] == answers.SHORT and record["goals"] == answers.GOALS
    trained = record["continuations"]["trained"]
    assert trained["prompts"] == answers.PROMPTS and trained["failed"] == 0
    assert trained["non-empty"] >= answers.GOALS["non-empty"] * trained["prompts"]
    assert trained["stopped"] >= answers.GOALS["stopped"] * trained["short references"]
