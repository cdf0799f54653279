"""Errors reported to the user, each in one line, with what to do about it.

The command line prints the line and exits with `exit_code`, without a traceback; anything else is a bug.
"""

import difflib
from collections.abc import Collection, Iterable


class UserError(Exception):
    """What was requested cannot be done in that way (exit code 2: wrong use)."""

    exit_code = 2


class RunFailed(UserError):
    """The request was fine but the work failed: no network, NaN loss, out of disk (exit code 1)."""

    exit_code = 1


class DamagedFile(RunFailed):
    """A file's content is not what its checksum or header promises."""


class Unreachable(RunFailed):
    """Something must come from the network and neither network nor cache has it."""


def unknown(kind: str, name: str, valid: Iterable[str]) -> UserError:
    """The error for a name that does not exist, with the nearest valid one and the whole list."""
    valid = sorted(valid)
    near = difflib.get_close_matches(name, valid, n=1, cutoff=0.4)
    hint = f" did you mean {near[0]!r}?" if near else ""
    return UserError(f"unknown {kind} {name!r}:{hint} valid: {', '.join(valid)}")


def known(kind: str, names: Iterable[str], valid: Collection[str]) -> None:
    """UserError for the first of these names that is not valid, with the nearest that is."""
    for name in names:
        if name not in valid:
            raise unknown(kind, name, valid)
