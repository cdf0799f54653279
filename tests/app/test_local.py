import json

import pytest

from chameleon_lite.errors import UserError
from chameleon_study.corpora import load_corpus

TEXTS = [f"document number {i} tells of the letter {chr(97 + i)}" for i in range(20)]


@pytest.fixture
def written(tmp_path):
    def write(name, content):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(
            content if isinstance(content, str) else "\n".join(map(json.dumps, content)), encoding="utf-8"
        )
        return str(path)

    return write


def everything(corpus):
    return sorted((d for part in corpus.splits.values() for d in part), key=lambda d: int(d.id))


def test_text_column(written):
    corpus = load_corpus(written("a.jsonl", [{"text": t, "more": 1} for t in TEXTS] + [{"text": " "}]))
    assert [d.text for d in everything(corpus)] == TEXTS
    assert corpus.name == "a" and corpus.notes["empty_rows"] == 1 and len(corpus.splits["test"]) == 2


def test_jsonl_json_and_csv_are_the_same(written):
    rows = [{"prompt": "Tell, please: ", "response": t} for t in TEXTS]
    csv = "prompt,response\n" + "\n".join(f'"Tell, please: ","{t}"' for t in TEXTS)
    paths = written("a.jsonl", rows), written("b.json", json.dumps(rows)), written("c.csv", csv)
    assert len({load_corpus(path).hash for path in paths}) == 1
    assert everything(load_corpus(paths[2]))[0].prompt == "Tell, please: "


def test_instruction_columns(written):
    rows = [{"instruction": f"Do {t}", "input": "x" if i else None, "output": t} for i, t in enumerate(TEXTS)]
    first, second, *_ = everything(load_corpus(written("a.jsonl", rows)))
    assert first.prompt == f"### Instruction:\nDo {TEXTS[0]}\n\n### Response:\n" and first.text == TEXTS[0]
    assert second.prompt == f"### Instruction:\nDo {TEXTS[1]}\n\n### Input:\nx\n\n### Response:\n"
    assert second.instruction == f"Do {TEXTS[1]}"


def test_a_prompt_beside_a_text_is_its_context_and_a_string_is_a_text(written):
    rows = [{"prompt": f"About {t[-1]}: ", "text": t, "id": i} for i, t in enumerate(TEXTS)]
    first, *_ = everything(load_corpus(written("a.jsonl", rows)))
    assert (first.id, first.prompt, first.text) == ("0", "About a: ", TEXTS[0])
    assert [d.text for d in everything(load_corpus(written("b.jsonl", TEXTS)))] == TEXTS


def test_splits_named_by_the_rows_are_kept(written):
    rows = [{"text": t, "split": ("train", "validation", "test")[i % 3]} for i, t in enumerate(TEXTS)]
    corpus = load_corpus(written("a.jsonl", rows))
    assert [d.text for d in corpus.splits["test"]] == TEXTS[2::3]


def test_folder_of_text_files(written, tmp_path):
    for i, text in enumerate(TEXTS):
        written(f"books/{i}.txt", f"{text}, first part\n\n{text}, second part of it\n")
    corpus = load_corpus(str(tmp_path / "books"))
    files = [{d.group for d in part} for part in corpus.splits.values()]
    assert sum(map(len, files)) == 20 == len(set.union(*files))  # no file on two sides
    assert corpus.counts()["train"]["documents"] == 32


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("a.jsonl", [{"Txt": "x"}], "no column 'text'.*found 'Txt': 'Txt' looks like 'text'"),
        ("a.jsonl", [{"prompt": "x", "answer": "y"}], "nor 'prompt' and 'response'"),
        ("a.jsonl", '{"text": "x"}\n{"text": oops}', "a.jsonl, row 2: not JSON"),
        ("a.jsonl", "[1]", "row 1: a row is an object or a string, not list"),
        ("a.jsonl", [{"text": 3}], "row 1: 'text' is int, not a string"),
        ("a.jsonl", "", "has no text"),
        ("a.jsonl", [{"text": ""}, {"text": None}], "2 rows, all empty"),
        ("a.jsonl", [{"text": "only one"}], "too few distinct documents"),
        ("a.json", '{"text": "x"}', "must be one list of rows"),
        ("a.json", "[{]", "a.json is not JSON: .*line 1"),
        ("a.csv", "text\na,b\n", "more cells than the header"),
        ("a.arrow", "", "a corpus is .jsonl"),
        ("a.parquet", "", "a.parquet is no whole .parquet"),
    ],
)
def test_errors_say_what_to_mend(written, name, content, message):
    with pytest.raises(UserError, match=message):
        load_corpus(written(name, content))


def test_empty_folder_and_wrong_encoding(tmp_path):
    with pytest.raises(UserError, match="has no text: 0 rows"):
        load_corpus(str(tmp_path))
    (tmp_path / "latin.txt").write_bytes("é".encode("latin-1"))
    with pytest.raises(UserError, match="latin.txt is not UTF-8"):
        load_corpus(str(tmp_path))
