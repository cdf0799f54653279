"""Where results go: an output is refused before the work, not after it, and what an input is made of stays.

path ─ no device, not the input, not somebody's model ─ parent made ─ a byte written beside it ─ locked ─▶ the work
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import NamedTemporaryFile

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from ..errors import RunFailed, UserError

MODELS = (".safetensors", ".bin", ".gguf", ".pt", ".pth")  # ends of files that hold weights
ELSE = "choose another --out"


@contextmanager
def claimed(
    path: Path | str, inputs: Sequence[Path | str] = (), *, own=False, folder=False, overwrite=False
) -> Iterator[Path]:
    """Hold an output, a file or a `folder`, for one writer; yields its path with links followed.

    `own`: what lies there was made by the same command and may be replaced; `overwrite`: so may anything but `inputs`,
    files or folders. Raises UserError for an output that may not be written, RunFailed for one that cannot be.
    """
    target = Path(path)
    if target.exists() and (why := _refusal(target, inputs, own, folder, overwrite)):
        raise UserError(f"{path} {why}: {ELSE}")
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
    """Turn what the system or safetensors says while `path` is written into RunFailed, with it and what was `kept`."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        if isinstance(error, FileExistsError | NotADirectoryError):
            reason = f"{error.filename or path.parent} is not a folder"
        raise RunFailed(f"cannot write {path}: {reason}{kept and f'; {kept}'}") from error


def _refusal(target: Path, inputs: Sequence[Path | str], own: bool, folder: bool, overwrite: bool) -> str:
    """Why what lies at `target` may not be replaced; "" where it may."""
    if folder and not target.is_dir():
        return "is a file, and a folder is needed"
    if not folder and not target.is_file():
        return "is no regular file, and nothing else is replaced"
    names = ("config.json", "generation_config.json", "model.safetensors") if folder else ()
    written = [path for path in (target, *(target / name for name in names)) if path.exists()]
    for source in (Path(name).expanduser() for name in inputs):
        if source.exists() and any(source.samefile(path) for path in written):
            return "is the input itself"
        if not (folder or own) and source.resolve() in target.resolve().parents:
            return f"is a part of the input {source}"
    models = folder and [p for p in target.iterdir() if p.name == "config.json" or p.suffix in MODELS]
    if own or overwrite or models == []:
        return ""
    return f"holds {'a model or an adapter' if folder else 'other content'} already, which --overwrite would replace"
