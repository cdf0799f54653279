"""Where results go: the input stays, nothing is replaced by accident, what is made is kept when a disk fills."""

import errno
import json
import os
import resource
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest

from chameleon_lite.app.fit import FitSettings, fit
from chameleon_lite.app.outputs import claimed
from chameleon_lite.app.stream import adapt_file
from chameleon_lite.errors import RunFailed, UserError
from chameleon_lite.settings import ClusterSettings, TokenSettings, TrainSettings

SMALL = FitSettings(
    tokens=TokenSettings(max_length=64),
    clusters=ClusterSettings(batch_rows=16),
    train=TrainSettings(epochs=1),
)
TEXT = "a text that is long enough to be scored, and more"


def linked(name: str, source: Path) -> str:
    """A second name of the input."""
    Path("folder").mkdir()
    if name == "symlink":
        Path(name).symlink_to(source)
    if name == "hard link":
        os.link(source, name)
    if name == "through a linked folder":
        Path("other").symlink_to(".")
        return f"other/{source}"
    return {"itself": str(source), "./": f"./folder/../{source}"}.get(name, name)


NAMES = ["itself", "./", "symlink", "hard link", "through a linked folder"]


@pytest.mark.parametrize("more", [[], ["--overwrite"]], ids=["", "overwrite"])
@pytest.mark.parametrize("name", NAMES)
def test_the_input_is_never_the_output(name, more, source, adapter_folder, refused):
    before, name = source.read_bytes(), linked(name, source)
    refused("adapt", source, "--model", adapter_folder, "--out", name, *more, says="is the input itself")
    refused("corpus", source, "--out", name, *more, says="is the input itself")
    refused("corpus", "folder", "--out", source, *more, says="has no text" if more else "holds other")
    assert source.read_bytes() == before and not source.with_name("in.jsonl.part").exists()


def test_a_file_of_an_input_folder_is_never_the_output(adapter, refused, command):
    adapter.save_pretrained("model")
    Path("texts").mkdir()
    Path("texts/a.txt").write_text(TEXT)
    before = {path: path.read_bytes() for path in Path().rglob("*.*") if path.is_file()}
    for out in ("model/config.json", "model/model.safetensors", "texts/a.txt"):
        refused(
            "adapt", "texts", "--model", "model", "--out", out, "--overwrite", says="is a part of the input"
        )
    assert {path: path.read_bytes() for path in Path().rglob("*.*") if path.is_file()} == before
    for _ in range(2):  # a new file there is none of the input, nor are earlier results
        assert command("adapt", "texts", "--model", "model", "--out", "texts/results.jsonl")[0] == 0


@pytest.mark.parametrize("make", ["/dev/null", "pipe", "socket-like link", "folder"])
def test_what_is_no_regular_file_is_not_replaced(make, source, adapter_folder, refused):
    if make == "pipe":
        os.mkfifo(make)
    if make == "socket-like link":
        Path(make).symlink_to("/dev/null")
    if make == "folder":
        Path(make).mkdir()
    for more in ([], ["--overwrite"]):
        refused("adapt", source, "--model", adapter_folder, "--out", make, *more, says="no regular file")
        refused("corpus", source, "--out", make, *more, says="no regular file")
    assert os.path.exists("/dev/null") and not Path("/dev/null").is_file()


def test_other_content_is_replaced_on_request_only(source, adapter_folder, command, refused):
    Path("notes.txt").write_text("mine")
    call = ["adapt", source, "--model", adapter_folder, "--out", "notes.txt"]
    refused(*call, says="--overwrite")
    refused(*call, "--resume", says="has no record")
    refused("corpus", source, "--out", "notes.txt", says="--overwrite")
    assert Path("notes.txt").read_text() == "mine"
    assert command(*call, "--overwrite")[0] == 0
    assert command(*call)[0] == 0 and command(*call, "--resume")[0] == 0  # its own results
    first = Path("notes.txt").read_bytes()
    Path("notes.txt").write_bytes(first[:-100])
    refused(*call, "--resume", says="has no record")
    for record in (b'{"key": "ab', b"{}", b"[]", b"\xff", b"[" * 60_000, b'{"key": 5, "seal": ""}'):
        Path(".notes.txt.made").write_bytes(record)
        refused(*call, "--resume", says="has no record")
    assert (
        command("corpus", source, "--out", "c.jsonl")[0]
        == 0
        == command("corpus", source, "--out", "c.jsonl")[0]
    )


def test_a_link_to_results_stays_a_link(source, adapter_folder, command):
    Path("there").mkdir()
    Path("out.jsonl").symlink_to("there/out.jsonl")
    assert command("adapt", source, "--model", adapter_folder, "--out", "out.jsonl")[0] == 0
    assert Path("out.jsonl").is_symlink() and Path("there/out.jsonl").stat().st_size


def test_a_model_is_not_trained_over(source, tiny, command, refused):
    tiny.lm.save_pretrained("backbone")
    tiny.tokenizer.save_pretrained("backbone")
    before = {path: path.read_bytes() for path in Path("backbone").iterdir()}
    Path("linked").symlink_to("backbone")
    call = ["fit", source, "--epochs", "1", "--device", "cpu", "--backbone"]
    for out in ("backbone", "./backbone/", "linked"):
        for more in ([], ["--overwrite"]):
            refused(*call, "backbone", "--out", out, *more, says="is the input itself")
    refused(*call, "tiny", "--out", "backbone", says="holds a model or an adapter")
    assert {path: path.read_bytes() for path in Path("backbone").iterdir()} == before
    assert command(*call, "tiny", "--out", "a")[0] == 0
    refused(*call, "tiny", "--out", "a", says="--overwrite")
    assert command(*call, "tiny", "--out", "a", "--overwrite")[0] == 0
    Path("config.json").write_text(json.dumps([{"text": TEXT}]))
    refused(
        "fit", "config.json", "--backbone", "tiny", "--out", ".", "--overwrite", says="is the input itself"
    )


def test_two_at_once_are_one_and_a_refusal(adapter, source, some_texts, tmp_path):
    started, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        with claimed("out.jsonl"):
            started.set()
            go_on.wait(20)

    first = threading.Thread(target=hold)
    first.start()
    started.wait(20)
    with pytest.raises(UserError, match="another process is writing"):
        adapt_file(adapter, source, "out.jsonl")
    with pytest.raises(UserError, match="another process is writing"), claimed("./out.jsonl"):
        pass
    go_on.set()
    first.join()
    assert adapt_file(adapter, source, "out.jsonl").rows == 60
    assert {path.name for path in Path().iterdir()} == {"in.jsonl", "out.jsonl", ".out.jsonl.made"}


PATHS = {  # output -> what is said
    "in.jsonl/x": "in.jsonl is not a folder",
    "in.jsonl/x/y": "is not a folder",
    "x" * 300: "File name too long",
    "locked/x": "Permission denied",
    "/proc/x": "",
}


@pytest.mark.parametrize("out", PATHS, ids=lambda out: out[:12])
def test_an_output_that_cannot_be_is_refused_before_the_work(
    out, source, adapter_folder, refused, monkeypatch
):
    Path("locked").mkdir()
    if out.startswith("locked"):

        def denied(dir, **options):
            raise PermissionError(errno.EACCES, "Permission denied", str(dir))

        monkeypatch.setattr(
            "chameleon_lite.app.outputs.NamedTemporaryFile", denied
        )  # root may write anywhere
    for name in ("chameleon_lite.app.stream.open_model", "chameleon_lite.app.fit.load_backbone"):
        monkeypatch.setattr(name, None)  # never reached
    refused("adapt", source, "--model", adapter_folder, "--out", out, says=PATHS[out], code=1)
    refused("fit", source, "--backbone", "tiny", "--out", out, says=PATHS[out], code=1)
    refused("corpus", source, "--out", out, says=PATHS[out], code=1)


@pytest.fixture
def full_at(monkeypatch):
    """`with full_at(size):` no file grows beyond `size` bytes, as on a disk that is full."""

    @contextmanager
    def limit(size: int):
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return limit


def test_a_full_disk_keeps_the_finished_rows(source, adapter_folder, command, full_at):
    call = ["adapt", source, "--model", adapter_folder, "--window", "8", "--out"]
    with full_at(4_000):
        code, _, err = command(*call, "out.jsonl")
    assert code == 1 and len(err.splitlines()) == 1, err
    assert "out.jsonl.part: File too large; 16 finished rows are kept" in err
    assert command(*call, "out.jsonl", "--resume")[0] == 0 == command(*call, "whole.jsonl")[0]
    assert Path("out.jsonl").read_bytes() == Path("whole.jsonl").read_bytes()


def test_an_adapter_that_cannot_be_written_is_kept_elsewhere(source, two_kinds, monkeypatch, tmp_path):
    from chameleon_lite.chameleon import ChameleonLiteForCausalLM

    original = ChameleonLiteForCausalLM.save_pretrained

    def full(self, folder, **options):
        if Path(folder).name == "adapter":
            raise OSError(errno.ENOSPC, "No space left on device")
        return original(self, folder, **options)

    monkeypatch.setattr(ChameleonLiteForCausalLM, "save_pretrained", full)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(RunFailed, match="No space left on device; the adapter is kept in") as failed:
        fit(source, backbone="tiny", out="adapter", settings=SMALL)
    kept = Path(str(failed.value).split("is kept in ")[1].split(";")[0])
    assert kept.is_relative_to(tmp_path) and "held-out texts" in str(failed.value)
    assert adapt_file(kept, source, "out.jsonl").failed == 0


def test_a_full_cache_is_one_line_and_the_next_run_goes_on(source, command, full_at):
    call = ["fit", source, "--backbone", "tiny", "--epochs", "1", "--device", "cpu", "--out", "a"]
    with full_at(20_000):
        code, _, err = command(*call)
    assert code == 1 and "Traceback" not in err, err
    line = err.splitlines()[-1]
    assert (
        line.startswith("chameleon-lite: cannot write ") and "home: File too large; finished hidden" in line
    )
    assert not Path("a/config.json").exists() and command(*call)[0] == 0
