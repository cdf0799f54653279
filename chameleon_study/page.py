"""What every notebook needs beside its subject: where the project lies, and numbers that prose can quote."""

import base64
import json
import warnings
from html import escape
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd

from chameleon_lite.errors import UserError, known

from .claims.paper import published
from .config import PROFILES

__all__ = ["csv_link", "keep", "piece", "published", "root", "start", "table"]


def root() -> Path:
    """The project's folder, found from where the package lies; UserError for an install without it."""
    folder = Path(__file__).resolve().parents[1]
    if not (folder / "_toc.yml").exists():
        raise UserError("notebooks need the project's folder: clone it and run pip install -e . inside it")
    return folder


def start(profile: str, seed: int = 0) -> str:
    """Check the profile, seed torch and numpy, print the machine; returns the device, cpu or cuda."""
    import torch

    from chameleon_lite.backbones.formats import device_of

    known("profile", [profile], PROFILES)
    warnings.filterwarnings("ignore", message="IProgress not found")  # pages show no bars
    np.random.seed(seed)
    torch.manual_seed(seed)
    device = str(device_of())
    name = torch.cuda.get_device_name() if device == "cuda" else f"{torch.get_num_threads()} threads"
    print(f"profile {profile}, seed {seed}, {device} ({name})")
    print(f"torch {torch.__version__}, transformers {version('transformers')}")
    return device


def keep(**values: float | int | str) -> None:
    """Store values in the executed notebook, for text to quote as {glue:text}`…::name`; nothing without myst-nb."""
    try:
        from myst_nb import glue
    except ImportError:
        return
    for name, value in values.items():
        glue(name, getattr(value, "item", lambda: value)(), display=False)  # numpy's and torch's scalars too


def table(frame: pd.DataFrame, caption: str = "", *, index: bool = False, **how):
    """A table as pages show it, its texts as text and never as HTML; `how` goes to pandas' Styler.format."""
    names = {axis: frame.axes[axis].map(_as_text).rename(_as_text(frame.axes[axis].name)) for axis in (0, 1)}
    shown = frame.set_axis(names[0]).set_axis(names[1], axis=1).style.format(escape="html", **how)
    return (shown if index else shown.hide(axis="index")).set_caption(escape(caption))


def _as_text(name):
    return escape(name) if isinstance(name, str) else name


def csv_link(frame: pd.DataFrame, name: str):
    """A link under a table that saves it as `name`.csv; notebooks show it, and it needs no server."""
    from IPython.display import HTML

    data = base64.b64encode(frame.to_csv(index=False).encode()).decode()
    return HTML(f'<a download="{escape(name)}.csv" href="data:text/csv;base64,{data}">Download as CSV</a>')


def piece(name: str, fallback: str = "", instead: str = "", **data):
    """An interactive piece of book.js with its data, in place of the figure `instead`; without scripts `fallback`."""
    from IPython.display import HTML

    text = json.dumps(data).replace("<", "\\u003c")  # no text of a corpus can end the script
    script = f'<script type="application/json">{text}</script>'
    return HTML(f'<div data-piece="{name}" data-instead="{instead}">{script}{fallback}</div>')
