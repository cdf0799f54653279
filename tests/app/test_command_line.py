"""The command line as a user meets it: what Ctrl-C leaves, which processes share the work, what --help shows first."""

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial

import pytest

from chameleon_lite.app import cli
from chameleon_lite.app.boundary import KEPT

pytestmark = pytest.mark.one_form
TWO = pytest.param(["--workers", "2"], id="two workers", marks=pytest.mark.slow)


@pytest.mark.parametrize("more", [pytest.param([], id="alone"), TWO])
def test_control_c_is_one_line_exit_code_130_and_a_run_that_can_be_resumed(
    adapter_folder, some_texts, tmp_path, more
):
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(text) + "\n" for text in some_texts(20_000)))
    command = [sys.executable, "-m", "chameleon_lite", "adapt", "in.jsonl", "--model", str(adapter_folder)]
    command += ["--out", "out.jsonl", "--window", "16", "--device", "cpu", *more]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    options = {"cwd": tmp_path, "env": environment, "stderr": subprocess.PIPE, "text": True}
    # a background job of a shell ignores the signal, and so would what it starts
    heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    with subprocess.Popen(command, **options, start_new_session=True, preexec_fn=heard) as run:
        part = tmp_path / "out.jsonl.part"
        while run.poll() is None and not (part.is_file() and part.stat().st_size):
            time.sleep(0.05)
        # Once: the interpreter frees its libraries for seconds after the line below, on a busy machine for longer,
        # and a signal that arrives then ends it by that signal.
        os.killpg(run.pid, signal.SIGINT)  # as a terminal does: to every process of the command
        run.wait(timeout=120)
        errors = run.communicate()[1]
    assert run.returncode == 130
    assert errors == f"chameleon-lite: interrupted; {KEPT['adapt']}\n"
    assert part.stat().st_size and not (tmp_path / "out.jsonl").exists()


@pytest.mark.parametrize("first, warns", [("import chameleon_lite.app.cli", False), ("", True)])
def test_a_lock_that_ended_with_its_worker_leaves_no_warning_on_the_command_line(first, warns):
    ended = (
        "from joblib.externals.loky.backend.resource_tracker import register; register('/gone', 'semlock')"
    )
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONWARNINGS"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    run = subprocess.run(
        [sys.executable, "-c", f"{first}\n{ended}"], env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0 and ("leaked semlock" in run.stderr) is warns


@pytest.mark.parametrize(
    "more, says",
    [
        ("--workers 2 --device cuda:0", "cuda:0 is one GPU"),
        ("--workers 2 --dask tcp://h:1", "exclude each other"),
    ],
)
def test_adapt_gives_the_work_to_workers(adapter_folder, tmp_path, monkeypatch, capsys, more, says):
    source = tmp_path / "in.jsonl"
    source.write_text('"a text that is long enough to be scored, and more"\n')
    command = ["adapt", str(source), "--model", str(adapter_folder), "--out", str(tmp_path / "out.jsonl")]
    monkeypatch.setattr(sys, "argv", ["chameleon-lite", *command, *more.split()])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    err = capsys.readouterr().err
    assert stopped.value.code == 2 and says in err and len(err.splitlines()) == 1


def test_help_begins_with_own_texts_then_the_study_then_the_benchmarks():
    from typer.main import get_command

    cli.add_commands()
    shown = list(get_command(cli.app).commands)
    assert shown[:4] == ["fit", "adapt", "export", "corpus"] and shown[-1] == "bench"
    assert shown.index("doctor") < shown.index("run")


def test_fit_and_adapt_are_public_whatever_is_imported_first():
    code = """
import pkgutil, chameleon_lite, chameleon_lite.app
for module in pkgutil.iter_modules(chameleon_lite.app.__path__, "chameleon_lite.app."):
    __import__(module.name)
from chameleon_lite import adapt, fit
assert fit.__module__ == "chameleon_lite.app.fit" and adapt.__module__ == "chameleon_lite.app.stream"
assert chameleon_lite.fit is fit and callable(adapt) and callable(fit)"""
    subprocess.run([sys.executable, "-c", code], check=True)
