"""Whatever goes wrong is one line and an exit code; --debug shows where it comes from."""

import errno
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from chameleon_lite.app.boundary import ADVICE, KEPT, report
from chameleon_lite.errors import UserError

pytestmark = pytest.mark.one_form
ERRORS = {  # what went wrong -> parts of the line
    OSError(errno.ENOSPC, "No space left on device", "out/x"): ["out/x: No space left on device; free some"],
    PermissionError(errno.EACCES, "Permission denied", "x"): ["x: Permission denied", "you may"],
    OSError(errno.EROFS, "Read-only file system", "x"): ["x: Read-only file system"],
    NotADirectoryError(errno.ENOTDIR, "Not a directory", "a/b"): ["a/b", "a file stands where a folder"],
    OSError("245760 requested and 9936 written"): ["245760 requested and 9936 written"],
    MemoryError("Unable to allocate 4.5 TiB"): ["memory does not suffice", "4.5 TiB"],
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried"
    ): ["memory does not suffice"],
    RecursionError("maximum recursion depth"): ["nested too deeply"],
    RuntimeError("an error of the libraries"): ["RuntimeError", "--debug"],
    UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"): ["not UTF-8"],
    ValueError("two\nlines\n  of it"): ["ValueError: two lines of it", "--debug"],
    UserError("a\nb"): ["a b"],
}


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_whatever_goes_wrong_is_one_line(error):
    line, code = report(error)
    assert code == getattr(error, "exit_code", 1) and "\n" not in line
    for part in ERRORS[error]:
        assert part in line


@pytest.mark.parametrize(
    "raised", [ValueError("odd"), OSError(errno.EIO, "Input/output error", "disk"), KeyError("k")]
)
def test_debug_shows_the_traceback_and_only_debug(raised, source, command, monkeypatch):
    def breaks(*_, **__):
        raise raised

    monkeypatch.setattr("chameleon_lite.app.own_texts.load_corpus", breaks)
    code, _, err = command("corpus", source)
    assert code == 1 and err.startswith("chameleon-lite: ") and len(err.splitlines()) == 1
    for words in (["--debug", "corpus", source], ["corpus", source, "--debug"]):
        code, _, err = command(*words)
        assert code == 1 and "Traceback" in err and "in breaks" in err


@pytest.mark.parametrize("name", [*KEPT, "corpus"])
def test_control_c_is_a_sentence_of_its_command_and_exit_code_130(name, monkeypatch, command):
    from chameleon_lite.app import cli

    def interrupted(words, **_):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "app", interrupted)
    monkeypatch.setattr(cli, "add_commands", list)
    code, _, err = command(name, "x")
    assert (
        code == 130
        and err == f"chameleon-lite: interrupted; {KEPT.get(name, 'the same command starts again')}\n"
    )


@pytest.mark.parametrize("reader", ["gone", "full"])
def test_standard_output_that_cannot_be_written(reader, source, command, monkeypatch):
    if reader == "gone":
        read, out = os.pipe()
        os.close(read)
    else:
        out = os.open("/dev/full", os.O_WRONLY)
    monkeypatch.setattr(sys, "stdout", os.fdopen(out, "w", encoding="ascii"))
    code, _, err = command("corpus", source)
    assert code == 1
    assert err == ("" if reader == "gone" else f"chameleon-lite: No space left on device; {ADVICE[28]}\n")
    with suppress(OSError):
        sys.stdout.close()


@pytest.mark.parametrize(
    "words",
    ["fit {source} --backbone {} --out a", "adapt {source} --model {} --out r.jsonl", "params --backbone {}"],
)
@pytest.mark.parametrize("name", ["~nobody-of-that-name", "~nobody-of-that-name/x"])
def test_the_home_of_nobody_is_one_line(words, name, source, command):
    code, _, err = command(*words.format(name, source=source).split())
    assert code in (1, 2) and len(err.splitlines()) == 1 and "not foreseen" not in err, err


def test_no_process_that_is_begun_runs_code_that_lies_beside_the_texts(tmp_path):
    for name in ("joblib", "multiprocessing", "numpy", "pip"):
        (tmp_path / f"{name}.py").write_text("open('trace', 'w').close()\n")
    code = """import subprocess, sys
import chameleon_lite.app.cli
from chameleon_lite.app.workers import Workers
if __name__ == "__main__":
    with Workers("ab", 2) as crew:
        print([pair for _, pair in crew.share(zip, ["cd", "ef"], ordered=True)])
    subprocess.run([sys.executable, "-m", "pip", "--version"], check=True)
"""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONSAFEPATH"}
    environment["PYTHONPATH"] = str(Path(__file__).parents[2])
    how = {"cwd": tmp_path, "env": environment, "capture_output": True, "text": True, "timeout": 300}
    run = subprocess.run([sys.executable, "-P", "-c", code], **how)
    assert run.returncode == 0 and "('a', 'c'), ('b', 'd'), ('a', 'e')" in run.stdout, run.stderr
    assert not (tmp_path / "trace").exists() and "pip " in run.stdout


def test_threads_that_wait_give_way_unless_told_otherwise():
    code = (
        "import os, chameleon_lite.app.cli, sys; print(os.environ['OMP_WAIT_POLICY'], 'torch' in sys.modules)"
    )
    for given, found in (({}, "passive"), ({"OMP_WAIT_POLICY": "active"}, "active")):
        environment = {k: v for k, v in os.environ.items() if k != "OMP_WAIT_POLICY"} | given
        run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
        assert run.stdout.split() == [found, "False"]


ODD_OPTIONS = [
    "--device nonsense",
    "--device meta",
    "--device cuda:99",
    "--device cpu:7",
    "--device",
    "--learning-rate inf",
    "--learning-rate nan",
    "--learning-rate -1",
    "--learning-rate 0",
    "--learning-rate 1e30",
    "--rank 1000000000",
    "--rank 0",
    "--rank x",
    "--lora-rank 1000000000",
    "--lora-rank -1",
    "--epochs 0",
    "--max-length 1",
    "--max-length 10",
    "--max-train-tokens 0",
    "--condition clustre",
    "--seed -1",
    "--seed 99999999999999999999",
    "--nonsense",
]


@pytest.mark.parametrize("words", ODD_OPTIONS)
def test_an_option_out_of_range_is_wrong_use_before_any_work(words, source, refused, monkeypatch):
    monkeypatch.setattr("chameleon_lite.app.candidates.hidden_states", None)  # never reached
    refused("fit", source, "--backbone", "tiny", "--out", "a", *words.split(), says="")
    assert not os.path.exists("a")


@pytest.mark.parametrize(
    "words",
    [
        *("--device nonsense", "--device meta", "--device cuda:99", "--dtype float8", "--condition rows"),
        *("--window 0", "--batch 0", "--clusters 0", "--continue -1", "--continue 100000", "--continue x"),
        *(
            "--score --continue 3",
            "--workers 0",
            "--workers 2 --dask tcp://h:1",
            "--workers 2 --device cuda:0",
        ),
    ],
)
def test_an_option_of_adapt_out_of_range_is_wrong_use(words, source, adapter_folder, refused):
    refused("adapt", source, "--model", adapter_folder, "--out", "o.jsonl", *words.split(), says="")
    assert not os.path.exists("o.jsonl")
