"""Whatever is done to the files of results: one line that names the folder, or a result; never a quiet success."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chameleon_bench.tables import stored_file
from chameleon_lite.errors import RunFailed
from chameleon_study import stored

NAME = "honest-docstrings"

TIMINGS = (
    b'{"machine": {"device": "cpu"}, "rows": {"overhead": {"status": "shown"}, "B1": {"status": "met"}}}'
)
FILES = [f"{NAME}.jsonl", f"{NAME}.parquet", "verdicts.json", "tables.json", stored.SUMS, "timings/cpu.json"]
FOREIGN = [
    b"",
    bytes(64),
    b"[]",
    b"{}\n",
    b"PAR1PAR1",
    b'{"proof": ""}',
    b"<p>404</p>",
    b"\xff\xfe{",
    TIMINGS,
]


@pytest.mark.parametrize("sums", [True, False])
def test_whatever_is_done_to_results_is_one_line_or_a_result(command, study_of, tmp_path, sums):
    results = tmp_path / "results"
    results.mkdir()
    study_of(results, "docstrings", {"R0": 3.7, "R1": 3.5, "R4": 3.4})
    for path in list(results.iterdir()):
        path.rename(path.with_name(path.name.replace("-smollm2", "")))
    (results / "timings").mkdir()
    (results / "timings" / "cpu.json").write_bytes(TIMINGS)
    (results / "verdicts.json").write_text("[]")
    (results / "tables.json").write_text("[]")
    if sums:
        with stored.storing(results / "verdicts.json") as part:
            part.write_text("[]")
    whole = {name: (results / name).read_bytes() for name in FILES if (results / name).exists()}
    calls = {"tables": ["tables"], "claims": ["claims", "--benchmarks", results / "timings"]}

    @settings(max_examples=30, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(st.sampled_from(sorted(whole)), st.sampled_from(sorted(calls)), st.floats(0, 1), st.data())
    def damaged(name, call, place, data):
        for other, content in whole.items():
            (results / other).write_bytes(content)
        content, start = whole[name], int(place * len(whole[name]))
        kind = data.draw(st.sampled_from(["flip", "cut", "splice", "foreign"]))
        if kind == "flip" and start < len(content):
            bit = 1 << data.draw(st.integers(0, 7))
            content = content[:start] + bytes([content[start] ^ bit]) + content[start + 1 :]
        elif kind == "cut":
            content = content[:start]
        elif kind == "splice":
            content = content[:start] + data.draw(st.binary(max_size=8)) + content[start + 4 :]
        elif kind == "foreign":
            content = data.draw(st.sampled_from(FOREIGN))
        (results / name).write_bytes(content)
        code, out, err = command(*calls[call], "--results", results)
        lines = [line for line in err.splitlines() if line]
        if code == 0:
            assert len(out.splitlines()) > 2 and not lines
        else:
            assert code in (1, 2) and len(lines) == 1 and "not foreseen" not in err and str(results) in err
        if sums and content != whole[name] and name in (f"{NAME}.jsonl", f"{NAME}.parquet"):
            assert code == 1, (name, kind, start)

    damaged()


@settings(max_examples=200, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.integers(0, len(TIMINGS)), st.integers(0, 20), st.binary(max_size=8) | st.sampled_from(FOREIGN))
def test_a_file_of_timings_is_rows_with_a_status_or_refused(tmp_path_factory, start, length, put):
    path = tmp_path_factory.getbasetemp() / "cpu.json"
    path.write_bytes(TIMINGS[:start] + put + TIMINGS[start + length :])
    try:
        found = stored_file(path)
    except RunFailed as error:
        assert str(path) in str(error) and len(str(error).splitlines()) == 1
    else:
        assert "device" in found["machine"] and all("status" in row for row in found["rows"].values())
