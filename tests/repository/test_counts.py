"""The counting command: physical lines, files that do not exist, nested functions."""

import pytest

from .counts import ROOT, Piece, counts, length, lines_of, longest_files, longest_functions, main, sources


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr("tests.repository.counts.ROOT", tmp_path)
    (tmp_path / "room").mkdir()
    (tmp_path / "a.py").write_text("class A:\n    @property\n    def f(self):\n        return 1\n")
    (tmp_path / "room" / "b.py").write_text(
        "async def g():\n\n    def h():\n        pass\n\n    h()\n\n# end"
    )
    return tmp_path


def test_lines_are_physical_and_an_absent_file_has_none(folder):
    assert (length(folder / "a.py"), length(folder / "room" / "b.py"), length(folder / "c.py")) == (4, 8, 0)
    assert lines_of(folder / "a.py", folder / "room", folder / "c.py") == lines_of(folder) == 12


def test_longest_pieces(folder):
    paths = [folder / "a.py", folder / "room" / "b.py"]
    assert longest_files(paths, 5) == [Piece(8, "room/b.py"), Piece(4, "a.py")]
    expected = [Piece(6, "room/b.py: g"), Piece(2, "room/b.py: h"), Piece(2, "a.py: f")]
    assert longest_functions(paths, 5) == expected


def test_sources_leave_out_tests_hidden_folders_and_runs(folder):
    for name in ("tests", ".venv", "_build", "runs"):
        (folder / name).mkdir()
        (folder / name / "c.py").touch()
    assert sources() == [folder / "a.py", folder / "room" / "b.py"]


def test_the_table_adds_up(capsys):
    table = counts()
    inside = [
        n for name, n in table.items() if name.startswith("chameleon_lite/") and name != "chameleon_lite/"
    ]
    assert sum(inside) == table["chameleon_lite/"] <= table["all Python but tests and streams"]
    main()
    printed = capsys.readouterr().out
    assert f"{table['chameleon_lite/']:,}  chameleon_lite/" in printed
    assert "longest function: " in printed and str(ROOT) not in printed
