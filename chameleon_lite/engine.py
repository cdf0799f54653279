"""The one door to speed: which functions of `fast/` stand in for their plain twins.

    plain    the readable form everywhere
    fast     the fast form wherever there is one
    auto     fast, but plain where the work is too small to gain from it (the default)

Most functions with a fast form begin with `if impl := engine.fast("its name"): return impl(…)` and go on with
their plain twin, of the same signature. `replayed`, `layer_pass` and `rows_pass` have no plain twin: the
caller falls back itself.
Files of `fast/` are loaded by name when first needed; nothing imports them.
"""

import os
from collections.abc import Callable
from contextlib import ExitStack
from functools import cache
from importlib import import_module

from .errors import UserError

ENGINES = ("plain", "fast", "auto")
VARIABLE = "CHAMELEON_LITE_ENGINE"  # chooses for a process, where `use` does not
DOORS = {  # door ─▶ the file of fast/ that defines a function of this name
    "head_losses": "head_loss",
    "token_losses": "head_loss",
    "kmeans": "lloyd",
    "update_logits": "mixed_update",
    "replayed": "recorded_steps",
    "layer_pass": "layers",
    "rows_pass": "rows",
}
_chosen: list[str] = []  # empty, or the one name set by `use`


def use(name: str) -> ExitStack:
    """Choose "plain", "fast" or "auto" from here on, or for the body of a `with`; UserError for another."""
    before, back = _chosen.copy(), ExitStack()
    _chosen[:] = [_checked(name, "engine.use")]
    back.callback(_chosen.__setitem__, slice(None), before)
    return back


def fast(door: str, worth: bool = True) -> Callable | None:
    """The fast function behind a door, or None for the plain twin; "auto": None for work not `worth` it."""
    name = _chosen[0] if _chosen else _checked(os.environ.get(VARIABLE) or "auto", VARIABLE)
    return _load(door) if name == "fast" or (name == "auto" and worth) else None


@cache
def _load(door: str) -> Callable | None:
    module = f"{__package__}.fast.{DOORS[door]}"
    try:
        return getattr(import_module(module), door)
    except ModuleNotFoundError as error:
        if error.name in (module, f"{__package__}.fast"):  # no such file: the plain form serves
            return None
        raise


def _checked(name: str, source: str) -> str:
    if name not in ENGINES:
        raise UserError(f"{source}: unknown engine {name!r}; choose one of {', '.join(ENGINES)}")
    return name
