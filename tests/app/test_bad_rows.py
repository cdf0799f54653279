"""Texts as people have them: one bad row fails alone, a file of another kind is named, every kind of row is read."""

import json
import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chameleon_lite.app.rows import parse, parse_line
from chameleon_lite.app.stream import adapt_file

GOOD = {"text": "a text that is long enough to be scored, and more"}
BAD = {  # name -> line, what is said of it
    "half a character": (b'{"text": "cut \\ud83d, and on and on and on"}', "'text' holds half a character"),
    "half a character in the id": (b'{"id": "\\ude00", "text": "on and on and on"}', "'id' holds half"),
    "half a character in the prompt": (b'{"prompt": "\\udfff", "response": "on"}', "'prompt' holds half"),
    "half a character in the group": (b'{"group": "\\ud800x", "text": "on"}', "'group' holds half"),
    "an integer of 5,000 digits": (
        b'{"id": ' + b"9" * 5_000 + b', "text": "x"}',
        "not JSON: Exceeds the limit",
    ),
    "a negative one in a list": (b"[-" + b"1" * 4_301 + b"]", "not JSON: Exceeds the limit"),
    "60,000 brackets": (b"[" * 60_000, "not JSON"),
    "60,000 objects": (b'{"a":' * 60_000, "not JSON"),
    "NUL in a text": (b'{"text": "a\\u0000b, and on and on and on"}', "'text' holds a NUL character"),
    "a page of zeros": (b"\0" * 4_096, "holds NUL bytes: is it UTF-16?"),
    "UTF-16 without a mark": ('{"text": "x"}'.encode("utf-16-le"), "holds NUL bytes: is it UTF-16?"),
    "latin-1": ('{"text": "é"}'.encode("latin-1"), "not UTF-8 (byte 10 of the line)"),
    "no messages": (b'{"messages": "hello"}', "'messages' is not a list"),
    "messages without content": (b'{"messages": [{"role": "user"}]}', "'messages' is not a list"),
    "messages of parts": (b'{"messages": [{"role": "user", "content": [1]}]}', "'messages' is not a list"),
    "messages of numbers": (b'{"messages": [1, 2]}', "'messages' is not a list"),
    "a key twice": (
        b'{"text": "one and on", "text": "two and on"}',
        "not JSON: the key 'text' stands there twice",
    ),
    "a key twice inside": (
        b'{"messages": [{"role": "a", "role": "b"}]}',
        "the key 'role' stands there twice",
    ),
    "null": (b"null", "not NoneType"),
    "not a number": (b"NaN", "not float"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_row_fails_alone_in_adapt_and_is_named_in_fit_and_corpus(name, adapter, refused, tmp_path):
    line, says = BAD[name]
    source = tmp_path / "in.jsonl"
    source.write_bytes(b"\n".join([json.dumps(GOOD).encode(), line, json.dumps(GOOD).encode()]))
    summary = adapt_file(adapter, source, tmp_path / "out.jsonl")
    results = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()]
    assert (summary.rows, summary.failed) == (3, 1) and summary.first_error.startswith("row 2: ")
    assert says in results[1]["error"] and len(results[1]["error"]) < 300
    assert results[0]["loss"] == results[2]["loss"]
    assert "in.jsonl, row 2: " in refused("corpus", source, says=says)
    refused("fit", source, "--backbone", "tiny", "--out", "a", says=says)


def test_the_id_of_a_bad_row_stays_where_it_can_be_written():
    assert parse({"id": "x7", "text": 5}, 1).id == "x7" and parse({"id": 0, "text": 5}, 1).id == "0"
    assert parse({"id": "\ud83d", "text": 5}, 4).id == "4"


WHOLE = {  # file -> its content, what is said, exit codes of adapt and of corpus
    "mark.jsonl": (b"\xef\xbb\xbf", "no rows", "has no text", 1, 2),
    "empty.jsonl": (b"", "no rows", "has no text", 1, 2),
    "blank.jsonl": (b"\n \n\t\n", "no rows", "has no text", 1, 2),
    "header.csv": (b"text\n", "no rows", "has no text", 1, 2),
    "wide.jsonl": (json.dumps(GOOD).encode("utf-16"), "is UTF-16", "is UTF-16", 2, 2),
    "wide.csv": ("text\nhello\n".encode("utf-16"), "is UTF-16", "is UTF-16", 2, 2),
    "packed.jsonl": (b"\x1f\x8b\x08\0rest", "is a damaged .gz", "is a damaged .gz", 2, 2),
    "table.jsonl": (b"PAR1\x15\x04", "is parquet", "is parquet", 2, 2),
    "latin.csv": ("text\né\n".encode("latin-1"), "is not UTF-8", "is not UTF-8", 2, 2),
    "deep.json": (b"[" * 60_000, "deep.json is not JSON", "deep.json is not JSON", 2, 2),
    "long.json": (b'["a",\n ' + b"9" * 5_000 + b"]", "Exceeds the limit", "line 2 column 2", 2, 2),
    "half.json": (b'[{"text": "a"},\n{"te', "half.json is not JSON", "line 2 column 2", 2, 2),
    "one.json": (b'{"text": "a"}', "must be one list of rows", "is not at line 1 column 1", 2, 2),
    "open.json": (b'["a text", \n"b text"\n', "must be one list", "is not at line 2 column 9", 2, 2),
    "more.json": (b'["a text"]\n["b text"]', "must be one list", "is not at line 1 column 10", 2, 2),
    "comma.json": (b'["a text",\n]', "is not JSON", "line 2 column 1", 2, 2),
    "twice.json": (b'[{\n"text": "a",\n"text": "b"}]', "'text' stands there twice", "line 1 column 2", 2, 2),
    "none.json": (b" [ ] ", "no rows", "has no text", 1, 2),
    "twice.csv": (b"text,id,text\na,1,b\n", "line 1 names the column 'text' twice", "twice", 2, 2),
    "short.jsonl": (b'"x"\n"y"\n', "no row of", "too few distinct", 1, 2),
    "columns.csv": (b"Txt,n\nhello there,1\n", "no row of", "'Txt' looks like 'text'", 1, 2),
    "cells.csv": (b"text\na,b,c\n", "more cells than the header", "more cells than the header", 1, 2),
}


@pytest.mark.parametrize("name", WHOLE)
def test_a_file_without_a_usable_row_is_said_so_and_is_no_success(name, adapter_folder, refused):
    content, of_adapt, of_corpus, *codes = WHOLE[name]
    Path(name).write_bytes(content)
    refused("adapt", name, "--model", adapter_folder, "--out", "o.jsonl", says=of_adapt, code=codes[0])
    refused("corpus", name, says=of_corpus, code=codes[1])
    refused("fit", name, "--backbone", "tiny", "--out", "m", says=of_corpus, code=codes[1])
    assert not Path("m").exists()


def test_a_bad_row_of_a_list_is_named_with_its_line_and_column(refused, adapter_folder):
    rows = [GOOD, {"text": 5}, GOOD, ["x"]]
    Path("rows.json").write_text(json.dumps(rows, indent=2))
    refused("corpus", "rows.json", says="row 2: 'text' is int, not a string (line 5 column 3)")
    Path("rows.json").write_text(json.dumps(rows[1:2]))
    says = "'text' is int, not a string (line 1 column 2)"
    refused("adapt", "rows.json", "--model", adapter_folder, "--out", "o.jsonl", says=says, code=1)


def test_columns_without_a_name_may_be_many_and_ids_may_be_equal(command, two_kinds):
    lines = [f'same,"{text}",,' for text in two_kinds(30)]
    Path("rows.csv").write_text("\n".join(["id,text,,", *lines]))
    code, out, err = command("corpus", "rows.csv")
    assert code == 0 and sum(int(n) for n in re.findall(r"(\d+) documents", out)) == 30, err


def test_adapt_reads_what_fit_reads(adapter_folder, command):
    text, more = GOOD["text"], "another text that is long enough, and more"
    Path("folder/deep").mkdir(parents=True)
    Path("folder/a.txt").write_text(f"{text}\r\n\r\n")
    Path("folder/deep/b.txt").write_text(more)
    rows = [{"text": text}, {"text": more}]
    Path("rows.json").write_text(json.dumps(rows))
    Path("rows.csv").write_text(f'text\n"{text}"\n"{more}"\n', encoding="utf-8-sig")
    Path("rows.JSONL").write_text("\n".join(map(json.dumps, rows)))
    losses = []
    for name in ("folder", "rows.json", "rows.csv", "rows.JSONL"):
        code, out, err = command("adapt", name, "--model", adapter_folder, "--out", "o.jsonl")
        assert code == 0 and "2 rows, 0 failed" in out, err
        losses.append([json.loads(line)["loss"] for line in Path("o.jsonl").read_text().splitlines()])
    assert len(set(map(tuple, losses))) == 1
    _, out, _ = command("adapt", "folder", "--model", adapter_folder, "--out", "o.jsonl", "--window", "1")
    assert [json.loads(line)["id"] for line in Path("o.jsonl").read_text().splitlines()] == [
        "a.txt#0",
        "deep/b.txt#0",
    ]


@pytest.mark.parametrize(
    "content, says", [(b"a\0b", "b.txt#0: 'text' holds a NUL"), (b"\xff\xfea\0", "is UTF-16")]
)
def test_a_bad_file_of_a_folder_is_named(content, says, refused):
    Path("folder").mkdir()
    Path("folder/a.txt").write_text(GOOD["text"])
    Path("folder/b.txt").write_bytes(content)
    assert "b.txt" in refused("corpus", "folder", says=says)


def test_conversations_are_prompts_and_answers():
    turns = [
        ("system", "Be short."),
        ("user", "Who?"),
        ("assistant", "I."),
        ("user", "And?"),
        ("assistant", "You."),
    ]
    messages = [{"role": role, "content": content} for role, content in turns]
    row = parse({"messages": messages, "id": 3}, 1, scored=True)
    assert row.prompt == "system: Be short.\n\nuser: Who?\n\nassistant: I.\n\nuser: And?\n\nassistant: "
    assert (row.text, row.id, row.error) == ("You.", "3", "")
    assert parse({"messages": messages[:2]}, 1).prompt.endswith("user: Who?\n\nassistant: ")
    assert parse({"prompt": "p", "completion": "c"}, 1, scored=True).text == "c"
    assert parse({"prompt": "p", "text": "t", "completion": "c", "messages": messages}, 1).text == "t"


def test_an_exported_corpus_can_be_adapted_to(adapter_folder, command, two_kinds):
    Path("in.jsonl").write_text("\n".join(map(json.dumps, two_kinds(30))))
    assert command("corpus", "in.jsonl", "--out", "c.jsonl")[0] == 0
    code, out, _ = command("adapt", "c.jsonl", "--model", adapter_folder, "--out", "o.jsonl")
    assert code == 0 and "30 rows, 0 failed" in out


NAMES = st.sampled_from(
    "text prompt response completion instruction input output id group messages role".split()
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=40),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=6,
)
LINES = st.binary(max_size=60) | JSON.map(lambda value: json.dumps(value).encode())


@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.lists(LINES, max_size=4), st.sampled_from([0, 3]))
def test_whatever_the_rows_are_there_is_a_result_or_a_reason_for_each(adapter, rows, new_tokens):
    rows = [parse_line(line, number) for number, line in enumerate(rows, start=1)]
    from chameleon_lite.app.score import Adapter

    results = Adapter(adapter, new_tokens=new_tokens)(rows)
    assert [r["row"] for r in results] == [row.number for row in rows]
    for result in results:
        assert ("error" in result) != (("continuation" if new_tokens else "loss") in result)
        json.dumps(result, ensure_ascii=False, allow_nan=False).encode()


@settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    st.lists(LINES | st.just(json.dumps(GOOD).encode()), max_size=4),
    st.sampled_from(["jsonl", "json", "csv"]),
)
def test_whatever_a_file_holds_success_has_a_result(command, adapter_folder, lines, kind):
    content = (
        b"[" + b",".join(lines) + b"]"
        if kind == "json"
        else b"\n".join([b"text,id", *lines][kind != "csv" :])
    )
    Path(f"any.{kind}").write_bytes(content)
    Path("o.jsonl").unlink(missing_ok=True)
    code, out, err = command("adapt", f"any.{kind}", "--model", adapter_folder, "--out", "o.jsonl")
    written = Path("o.jsonl").read_text().splitlines() if Path("o.jsonl").exists() else []
    results = list(map(json.loads, written))
    assert (code == 0) == any("loss" in row for row in results), (out, err)
    assert code == 0 or len(err.splitlines()) == 1 and "not foreseen" not in err and "Traceback" not in err
