import json

import pytest

from chameleon_lite.app.files_read import jsonl_rows
from chameleon_lite.app.rows import parse, parse_line
from chameleon_lite.app.stream import windows
from chameleon_lite.errors import UserError


@pytest.mark.parametrize(
    "value, prompt, text",
    [
        ("abc", "", "abc"),
        ({"text": "abc"}, "", "abc"),
        ({"prompt": "p", "response": "r"}, "p", "r"),
        ({"prompt": "p", "text": "r"}, "p", "r"),
        ({"prompt": "p"}, "p", ""),
        (
            {"instruction": "do", "input": "", "output": "done"},
            "### Instruction:\ndo\n\n### Response:\n",
            "done",
        ),
        ({"text": None}, "", ""),
    ],
)
def test_what_a_row_may_look_like(value, prompt, text):
    row = parse(value, 3)
    assert (row.number, row.id, row.prompt, row.text, row.error) == (3, "3", prompt, text, "")


@pytest.mark.parametrize(
    "line, says",
    [
        (b'{"text": "\xff"}', "not UTF-8"),
        (b"{text", "not JSON"),
        (b"[1]", "object or a string, not list"),
        (b'{"text": 5}', "'text' is int"),
        (b'{"txt": "a"}', "no column 'text'.*found 'txt'"),
        (b"[" * 100_000, "not JSON"),
    ],
)
def test_what_is_wrong_with_a_row_is_said_and_the_row_is_kept(line, says):
    import re

    row = parse_line(line, 7)
    assert row.number == 7 and re.search(says, row.error)


def test_ids_are_kept_also_numbers_and_also_twice(tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_text(
        "\n".join(
            json.dumps(x)
            for x in ({"id": 0, "text": "a"}, {"id": "x", "text": "b"}, {"id": "x", "text": "c"})
        )
        + '\n\n\n"d"',
        encoding="utf-8-sig",
    )
    rows = list(jsonl_rows(path))
    assert [(r.number, r.id, r.text) for r in rows] == [
        (1, "0", "a"),
        (2, "x", "b"),
        (3, "x", "c"),
        (6, "6", "d"),
    ]


def test_windows():
    assert list(windows(range(5), 2)) == [[0, 1], [2, 3], [4]] and list(windows([], 2)) == []
    with pytest.raises(UserError, match="at least 1"):
        next(windows([], 0))
