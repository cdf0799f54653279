"""Where results go: an output is refused before the work, not after it, and what an input is made of stays.

path ─ no device, not the input, not somebody's model ─ parent made ─ a byte written beside it ─ locked ─▶ the work
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import NamedTemporaryFile

from filelock import FileLock, Timeout

from ..errors import RunFailed, UserError

MODELS = (".safetensors", ".bin", ".gguf", ".pt", ".pth")  # ends of files that hold weights
ELSE = "choose another --out"


@contextmanager
def claimed(
    path: Path | str,
    inputs: Sequence[Path | str] = (),
    *,
    own: bool = False,
    folder: bool = False,
    overwrite: bool = False,
) -> Iterator[Path]:
    """Hold an output, a file or a `folder`, for one writer; yields its path with links followed.

    `own`: what lies there was made by the same command and may be replaced; `overwrite`: so may anything but `inputs`,
    files or folders. Raises UserError for an output that may not be written, RunFailed for one that cannot be.
    """
    target = Path(path)
    if target.exists():
        _refuse_kind(target, folder)
        _refuse_inputs(target, inputs, folder, own)
        if not (own or overwrite) and (there := _held(target, folder)):
            raise UserError(f"{path} holds {there} already: {ELSE}, or replace it with --overwrite")
    target = target.resolve()
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        where = target if target.is_dir() else target.parent
        with NamedTemporaryFile(dir=where, prefix=f".part-{target.name}-") as trial:
            trial.write(b"\n")
            trial.flush()
    lock = FileLock(target.with_name(f".{target.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(f"another process is writing {path}: wait until it has ended, or {ELSE}") from None
    try:
        yield target
    finally:
        with suppress(OSError):
            Path(lock.lock_file).unlink()  # while it is held: whoever opened it meanwhile opens it again
        lock.release()


@contextmanager
def writing(path: Path, kept: str = "") -> Iterator[None]:
    """Turn what the system says while `path` is written into RunFailed, with the path and what was `kept`."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        if isinstance(error, FileExistsError | NotADirectoryError):
            reason = f"{error.filename or path.parent} is not a folder"
        raise RunFailed(f"cannot write {path}: {reason}{kept and f'; {kept}'}") from error


def _refuse_kind(target: Path, folder: bool) -> None:
    if folder and not target.is_dir():
        raise UserError(f"{target} is a file, and a folder is needed: {ELSE}")
    if not folder and not target.is_file():
        raise UserError(f"{target} is no regular file, and nothing else is replaced: {ELSE}")


def _refuse_inputs(target: Path, inputs: Sequence[Path | str], folder: bool, own: bool) -> None:
    """UserError where writing `target` would change an input."""
    names = ("config.json", "generation_config.json", "model.safetensors") if folder else ()
    written = [path for path in (target, *(target / name for name in names)) if path.exists()]
    for name in inputs:
        source = Path(name).expanduser()
        if source.exists() and any(source.samefile(path) for path in written):
            raise UserError(f"{target} is the input itself: {ELSE}")
        if not (folder or own) and source.resolve() in target.resolve().parents:
            raise UserError(f"{target} is a part of the input {name}: {ELSE}")


def _held(target: Path, folder: bool) -> str:
    """What would be lost."""
    if not folder:
        return "other content"
    models = (p for p in target.iterdir() if p.name == "config.json" or p.suffix in MODELS)
    return "a model or an adapter" if next(models, None) else ""
