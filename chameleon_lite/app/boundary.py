"""What goes wrong between the command line, its user and the system: one line and an exit code.

UserError: its own line and code · what the system says: the path and what to do, 1 · Ctrl-C: what is kept, 130
"""

import errno
from collections.abc import Iterable

from ..errors import UserError
from . import SENTENCES

INTERRUPTED = 130
KEPT = SENTENCES["kept"]  # command -> what Ctrl-C leaves
NO_MEMORY = ("out of memory", "not enough memory", "can't allocate memory")
# number of a system's error, which not every system has -> what to do
ADVICE = {getattr(errno, name, name): what for name, what in SENTENCES["advice"].items()}


def report(error: BaseException, words: Iterable[str] = ()) -> tuple[str, int]:
    """One line on what went wrong, and the exit code; `words` are the command line's."""
    code = getattr(error, "exit_code", 1)
    if isinstance(error, KeyboardInterrupt):
        command = next((word for word in words if not word.startswith("-")), "")
        line, code = f"interrupted; {KEPT.get(command, 'the same command starts again')}", INTERRUPTED
    elif isinstance(error, UserError):
        line = str(error)
    elif hasattr(error, "format_message"):  # a usage error of the command line's library
        line = f"{error.format_message().rstrip('.')}: see --help"
    elif isinstance(error, MemoryError) or any(text in str(error).lower() for text in NO_MEMORY):
        line = f"the memory does not suffice: choose a smaller model, fewer rows at once, or shorter texts ({error})"
    elif isinstance(error, RuntimeError) and "home directory" in str(error):  # of Path.expanduser
        line, code = "a path that begins with ~ and a name needs a user of that name: give it in full", 2
    elif isinstance(error, RecursionError):
        line = "the input is nested too deeply to be read"
    elif isinstance(error, UnicodeError):
        line = f"the input is not UTF-8: save it as UTF-8 ({error})"
    elif isinstance(error, OSError):
        said = ": ".join(str(part) for part in (error.filename, error.strerror) if part) or str(error)
        advice = ADVICE.get(error.errno, "")
        line = f"{said}; {advice}" if advice else said
    else:
        line = f"{type(error).__name__}: {error} (not foreseen: --debug shows where; please report it)"
    return " ".join(line.split())[:1_000], code
