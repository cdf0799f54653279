"""Every kind of row in every kind of file gives the same rows; each wrong one gives one line that says what to mend."""

import csv
import gzip
import io
import json
from pathlib import Path

import pandas as pd
import pytest

from chameleon_lite.app.files_read import read_rows
from chameleon_lite.app.own_texts import load, read_jsonl, write_jsonl
from chameleon_lite.app.rows import parse

TURNS = [("system", "Be short."), ("user", "Who, „é“?"), ("assistant", "I."), ("user", "And?")]
ANSWER = "You, \N{GRINNING FACE} and nobody else."
NAMES = {"user": "human", "assistant": "gpt", "system": "system"}
KINDS = {  # kind of row -> (value, prompt, text)
    "text": ({"text": ANSWER}, "", ANSWER),
    "completion": ({"prompt": "p, é", "completion": ANSWER}, "p, é", ANSWER),
    "response": ({"prompt": "p", "response": ANSWER}, "p", ANSWER),
    "instruction": (
        {"instruction": "Do it", "input": "x", "output": ANSWER},
        "### Instruction:\nDo it\n\n### Input:\nx\n\n### Response:\n",
        ANSWER,
    ),
    "messages": (
        {"messages": [{"role": r, "content": c} for r, c in [*TURNS, ("assistant", ANSWER)]]},
        "system: Be short.\n\nuser: Who, „é“?\n\nassistant: I.\n\nuser: And?\n\nassistant: ",
        ANSWER,
    ),
    "conversations": (
        {"conversations": [{"from": NAMES[r], "value": c} for r, c in [*TURNS, ("assistant", ANSWER)]]},
        "system: Be short.\n\nuser: Who, „é“?\n\nassistant: I.\n\nuser: And?\n\nassistant: ",
        ANSWER,
    ),
}


def table(rows: list[dict], delimiter: str) -> str:
    cells = [{k: x if isinstance(x, str) else json.dumps(x) for k, x in row.items()} for row in rows]
    out = io.StringIO()
    writer = csv.DictWriter(out, list(cells[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(cells)
    return out.getvalue()


def parquet(rows: list[dict]) -> bytes:
    out = io.BytesIO()
    pd.DataFrame(rows).to_parquet(out)
    return out.getvalue()


FILES = {  # ending -> rows ─▶ bytes
    ".jsonl": lambda rows: "\n".join(json.dumps(row, ensure_ascii=False) for row in rows).encode(),
    ".json": lambda rows: json.dumps(rows, ensure_ascii=False, indent=1).encode(),
    ".csv": lambda rows: table(rows, ",").encode(),
    ".tsv": lambda rows: table(rows, "\t").encode(),
    ".parquet": parquet,
}


@pytest.mark.parametrize("ending", FILES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_row_is_the_same_in_every_file_packed_or_not(kind, ending, tmp_path):
    value, prompt, text = KINDS[kind]
    content = FILES[ending]([value, value])
    (tmp_path / f"a{ending}").write_bytes(content)
    (tmp_path / f"A{ending.upper()}.GZ").write_bytes(gzip.compress(content))
    paths = [tmp_path / f"a{ending}", tmp_path / f"A{ending.upper()}.GZ"]
    if ending != ".parquet":
        (tmp_path / f"mark{ending}").write_bytes(b"\xef\xbb\xbf" + content)
        paths.append(tmp_path / f"mark{ending}")
    for path in paths:
        rows = list(read_rows(path))
        assert [(row.prompt, row.text, row.error) for row in rows] == [(prompt, text, "")] * 2, path
        turns = json.loads(rows[0].turns) if rows[0].turns else None
        assert turns == ([list(turn) for turn in TURNS] if kind in ("messages", "conversations") else None)


@pytest.mark.parametrize("encoding", ["cp1252", "utf-16", "utf-16-be", "utf-8", "shift_jis"])
@pytest.mark.parametrize("ending", [".jsonl", ".json", ".csv", ".tsv", ".txt"])
def test_files_of_other_encodings_are_read_where_it_is_named(encoding, ending, tmp_path):
    text = "漢字 and more" if encoding == "shift_jis" else "é and more"
    if ending == ".txt":
        (tmp_path / "texts").mkdir()
        path, content = tmp_path / "texts", f"{text}\n\n{text}"
        (path / "a.TXT").write_bytes(content.encode(encoding))
    else:
        path, content = tmp_path / f"a{ending}", FILES[ending]([{"text": text}] * 2).decode()
        path.write_bytes(content.encode(encoding))
    assert [row.text for row in read_rows(path, encoding=encoding)] == [text] * 2


def test_a_folder_holds_texts_packed_or_not_under_endings_in_any_case(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "a.TXT").write_text("one\n\ntwo")
    (tmp_path / "deep" / "b.txt.gz").write_bytes(gzip.compress(b"\xef\xbb\xbfthree"))
    (tmp_path / "c.text").write_text("not read")
    rows = [(row.id, row.text, row.group) for row in read_rows(tmp_path)]
    assert rows == [
        ("a.TXT#0", "one", "a.TXT"),
        ("a.TXT#1", "two", "a.TXT"),
        ("deep/b.txt.gz#0", "three", "deep/b.txt.gz"),
    ]


def test_of_a_table_of_mixed_rows_each_takes_the_columns_that_it_fills(tmp_path):
    rows = [value | {"id": kind} for kind, (value, _, _) in KINDS.items()]
    (tmp_path / "mixed.parquet").write_bytes(parquet(rows))
    found = {row.id: (row.prompt, row.text) for row in read_rows(tmp_path / "mixed.parquet")}
    assert found == {kind: (prompt, text) for kind, (_, prompt, text) in KINDS.items()}


def test_a_corpus_of_dialogues_comes_back_from_its_export(tmp_path):
    value = KINDS["messages"][0]["messages"]
    rows = [{"messages": [*value[:-1], {"role": "assistant", "content": f"{word} " * 9}]} for word in "abcd"]
    path = tmp_path / "in.jsonl"
    path.write_bytes(FILES[".jsonl"](rows))
    corpus = load(path)
    again = read_jsonl(write_jsonl(corpus, tmp_path / "c.jsonl"))
    assert again == corpus and {json.loads(d.turns)[0][1] for d in again.splits["train"]} == {"Be short."}
    assert {row.turns for row in read_rows(tmp_path / "c.jsonl")} == {again.splits["train"][0].turns}
    assert parse({"prompt": "p", "text": "t", "turns": 3}, 1).turns == ""  # another column of that name


WRONG = {  # file -> its content, further words, what is said
    "a.jsonl": (b'{"text": "\xe9"}', (), "row 1: not UTF-8 (byte 10 of the line)"),
    "b.jsonl": (b'{"text": "\x81\xe9"}', ("--encoding", "ascii"), "row 1: not ascii (byte 10 of the line)"),
    "c.jsonl": ('{"text": "é"}'.encode("utf-16-le")[:-1], ("--encoding", "utf-16-le"), "is not utf-16-le"),
    "d.json": (b'["\xe9"]', (), "d.json is not UTF-8 (byte 2); save it as UTF-8, or give --encoding"),
    "e.csv": ("text\né".encode("utf-16"), (), "e.csv is UTF-16: give --encoding utf-16"),
    "f.csv": (b"text\nabc\n", ("--encoding", "utf-88"), "--encoding 'utf-88' is none of a text"),
    "g.tsv": (b"text\nabc\n", ("--encoding", "hex"), "--encoding 'hex' is none of a text"),
    "h.tsv": (b"text\ttext\na\tb\n", (), "h.tsv, line 1 names the column 'text' twice"),
    "i.tsv": (b"text\na\tb\n", (), "row 1: more cells than the header"),
    "j.parquet": (b'{"text": "x"}', (), "j.parquet is no whole .parquet"),
    "k.parquet": (FILES[".parquet"]([{"text": "abc"}])[:-20], (), "k.parquet is no whole .parquet"),
    "l.parquet": (FILES[".parquet"]([{"tekst": "abc"}]), (), "'tekst' looks like 'text'"),
    "m.jsonl.gz": (gzip.compress(b'"abc"' * 99)[:-12], (), "m.jsonl.gz is a damaged .gz"),
    "n.json.gz": (gzip.compress(b'["abc"]')[:9] + b"\xff" * 9, (), "n.json.gz is a damaged .gz"),
    "o.csv.gz": (gzip.compress(gzip.compress(b"text\n")), (), "o.csv.gz is packed twice"),
    "p.parquet.gz": (gzip.compress(parquet([{"text": "a"}]))[:-12], (), "p.parquet.gz is a damaged .gz"),
    "q.jsonl.xz": (b"\xfd7zXZ\0", (), "cannot read q.jsonl.xz"),
    "r.jsonl": (b"\xfd7zXZ\0", (), "r.jsonl is compressed, and not as .gz: unpack it"),
    "s.jsonl": (b'{"messages": []}', (), "row 1: 'messages' has no turns"),
    "t.jsonl": (b'{"messages": [{"from": "human"}]}', (), "'messages' is not a list of {'role': string"),
    "u.jsonl": (
        b'{"conversations": [{"from": "human", "value": 3}]}',
        (),
        "is not a list of {'from': string",
    ),
    "v.jsonl": (
        b'{"conversations": [{"from": "me", "value": "x"}]}',
        (),
        "'from' is 'me', none of human, gpt",
    ),
    "w.csv": (b"messages\nhello\n", (), "row 1: 'messages' is not a list of {'role': string"),
    "x.jsonl": (b'{"conversation": []}', (), "'conversation' looks like 'conversations'"),
    "y.jsonl": (b'{"prompt": "x", "completion": ["y"]}', (), "'completion' is list, not a string"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_with_a_file_or_row_is_one_line(name, refused):
    content, words, says = WRONG[name]
    Path(name).write_bytes(content)
    refused("corpus", f"./{name}", *words, says=says)


@pytest.fixture
def piped(monkeypatch):
    """piped(bytes): what comes through standard input."""
    return lambda content: monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))


PACK = {"plain": lambda content: content, "packed": gzip.compress}


@pytest.mark.parametrize("pack", PACK)
@pytest.mark.parametrize("ending", [".jsonl", ".json"])
def test_corpus_and_adapt_read_standard_input(ending, pack, command, piped, adapter_folder, two_kinds):
    content = FILES[ending]([{"text": text} for text in two_kinds(30)])
    Path(f"in{ending}").write_bytes(content)
    ways = {}
    for name in ("-", f"in{ending}"):
        piped(PACK[pack](content))
        code, out, err = command("corpus", name)
        assert code == 0, err
        ways[name] = [out.splitlines()[1:]]
        piped(PACK[pack](content))
        code, _, err = command("adapt", name, "--model", adapter_folder, "--out", "o.jsonl", "--overwrite")
        assert code == 0, err
        ways[name].append(Path("o.jsonl").read_bytes())
    assert ways["-"] == ways[f"in{ending}"]


def test_fit_reads_standard_input(command, piped, two_kinds):
    piped(FILES[".jsonl"]([{"text": text} for text in two_kinds(60)]))
    how = ("--backbone", "tiny", "--out", "a", "--epochs", "1", "--head", "lora")
    code, out, err = command("fit", "-", *how)
    assert code == 0 and "60 texts from file standard input.jsonl" in err, (out, err)
    piped(b"")
    code, out, err = command("fit", "-", "--backbone", "tiny", "--out", "b")
    assert code == 2 and "standard input.jsonl has no text" in err.splitlines()[-1]


def test_a_run_from_standard_input_is_resumed_with_the_same_input_only(
    refused, command, piped, adapter_folder, two_kinds
):
    content = FILES[".jsonl"]([{"text": text} for text in two_kinds(30)])
    words = ("adapt", "-", "--model", adapter_folder, "--out", "o.jsonl", "--window", "8", "--resume")
    piped(content)
    assert command(*words)[0] == 0
    whole, record = Path("o.jsonl").read_bytes(), json.loads(Path(".o.jsonl.made").read_text())
    Path("o.jsonl").rename("o.jsonl.part")
    piped(content)
    assert command(*words)[0] == 0 and Path("o.jsonl").read_bytes() == whole and record
    piped(content + b'\n"and one more text that is long enough"')
    refused(*words, says="has no record that it was made with these settings, this adapter and this input")
    piped(b"")
    refused(*words, says="standard input.jsonl holds no rows", code=1)


@pytest.mark.parametrize("ending", [".tsv", ".parquet", ".jsonl.gz"])
@pytest.mark.parametrize("learn", [(), ("--learn",)])
def test_the_checks_of_adapt_hold_for_every_kind_of_file(
    ending, learn, refused, command, adapter_folder, two_kinds
):
    rows = [{"text": text} for text in two_kinds(20)]
    content = FILES[ending.removesuffix(".gz")](rows)
    name = Path(f"in{ending}")
    name.write_bytes(gzip.compress(content) if ending.endswith(".gz") else content)
    words = ("--model", adapter_folder, *learn)
    refused("adapt", name, *words, "--out", name, "--overwrite", says="is the input itself")
    assert command("adapt", name, *words, "--out", "o.jsonl", "--resume")[0] == 0
    assert (
        command("adapt", name, *words, "--out", "o.jsonl", "--resume")[0] == 0
    )  # complete, and still of this input
    name.write_bytes(FILES[ending.removesuffix(".gz")](rows[:10]))
    refused("adapt", name, *words, "--out", "o.jsonl", "--resume", says="has no record")


def test_a_bad_row_of_a_packed_file_fails_alone(command, adapter_folder):
    good = json.dumps({"text": "a text that is long enough to be scored, and more"}).encode()
    Path("in.JSONL.gz").write_bytes(gzip.compress(b"\n".join([good, b"{", b'"\xe9"', good])))
    code, out, _ = command("adapt", "in.JSONL.gz", "--model", adapter_folder, "--out", "o.jsonl")
    assert code == 0 and "4 rows, 2 failed" in out
    code, out, _ = command(
        "adapt", "in.JSONL.gz", "--encoding", "latin-1", "--model", adapter_folder, "--out", "p.jsonl"
    )
    errors = [json.loads(line).get("error", "") for line in Path("p.jsonl").read_text().splitlines()]
    assert code == 0 and "not JSON" in errors[1] and "too short" in errors[2]


def test_lines_are_read_one_by_one_also_from_a_packed_file(tmp_path):
    import tracemalloc

    with gzip.open(tmp_path / "long.jsonl.gz", "wt") as file:
        for i in range(2_000):
            file.write(json.dumps({"id": i, "text": "x" * 10_000}) + "\n")
    tracemalloc.start()
    assert sum(len(row.text) for row in read_rows(tmp_path / "long.jsonl.gz")) == 20_000_000
    assert tracemalloc.get_traced_memory()[1] < 2_000_000
    tracemalloc.stop()
