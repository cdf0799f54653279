import json

import pytest

from chameleon_lite.app.own_texts import instruction_key
from chameleon_lite.errors import UserError
from chameleon_study.corpora import load_corpus

# Written for this test: each instruction occurs twice, once in another case.
ROWS = [
    {"instruction": f"{verb} {thing} {i}", "input": "", "output": f"{verb} {i} done, take {thing}"}
    for verb in ("Count", "Paint", "Weigh")
    for i in range(10)
    for thing in ("thing", "THING")
]


@pytest.mark.parametrize(
    "where", ["alpaca.jsonl", "alpaca/alpaca.jsonl", "alpaca/alpaca_data.json", "rows.json"]
)
def test_the_file_is_found_and_instructions_are_disjoint(tmp_path, where):
    path = tmp_path / where
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(ROWS) if path.suffix == ".json" else "\n".join(map(json.dumps, ROWS)))
    corpus = load_corpus("alpaca", data_dir=tmp_path)
    keys = [{instruction_key(d) for d in part} for part in corpus.splits.values()]
    assert sum(map(len, keys)) == 30 == len(set.union(*keys))
    assert {split: len(part) for split, part in corpus.splits.items()} == {
        "train": 48,
        "validation": 6,
        "test": 6,
    }


def test_no_file_or_too_many(tmp_path):
    with pytest.raises(UserError, match="no .json or .jsonl in"):
        load_corpus("alpaca", data_dir=tmp_path)
    for name in ("one.json", "two.json"):
        (tmp_path / name).write_text("[]")
    with pytest.raises(UserError, match="2 .json or .jsonl files"):
        load_corpus("alpaca", data_dir=tmp_path)


def test_other_corpora_may_lie_beside_its_folder(tmp_path):
    (tmp_path / "alpaca").mkdir()
    (tmp_path / "alpaca" / "alpaca.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    (tmp_path / "docstrings.jsonl").write_text("{}\n")
    (tmp_path / "docstrings-instructions.jsonl").write_text("{}\n")
    assert load_corpus("alpaca", data_dir=tmp_path).source == "file alpaca.jsonl"


@pytest.mark.parametrize(
    "line",
    [
        '{"instruction": "a", "output": "half \\ud83d"}',
        '{"instruction": "a", "output": 1' + "0" * 5_000 + "}",
        "[" * 60_000,
        '{"instruction": "a", "output": "a\\u0000b"}',
        '{"instruction": "a", "output": NaN}',
        '{"instruction": {"a": 1}, "output": "b"}',
    ],
)
def test_a_bad_row_is_named(tmp_path, line):
    (tmp_path / "alpaca.jsonl").write_text("\n".join([*map(json.dumps, ROWS[:6]), line]))
    with pytest.raises(UserError, match="row 7") as caught:
        load_corpus("alpaca", data_dir=tmp_path)
    assert len(str(caught.value)) < 400
