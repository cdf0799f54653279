"""What every notebook needs around its own subject: where the project lies, and numbers that prose can quote.

start(profile, seed) ─ prints device and versions, seeds torch and numpy
keep(loss=3.21)      ─ the book's text can say {glue:text}`…::loss` instead of typing the number again
"""

from pathlib import Path

from ..errors import UserError, unknown

PROFILES = ("smoke", "colab", "paper")


def root() -> Path:
    """The project's folder, found from where the package lies; UserError for an install without its sources."""
    folder = Path(__file__).resolve().parents[2]
    if not (folder / "_toc.yml").exists():
        raise UserError(
            "the notebooks need the project's folder: clone it and run pip install -e . inside it"
        )
    return folder


def start(profile: str, seed: int = 0) -> str:
    """Check the profile, seed torch and numpy, say on which machine; returns the device, cpu or cuda."""
    import random
    import warnings
    from importlib.metadata import version

    import numpy
    import torch

    if profile not in PROFILES:
        raise unknown("profile", profile, PROFILES)
    warnings.filterwarnings("ignore", message="IProgress not found")  # bars in a page are not wanted anyway
    random.seed(seed)
    numpy.random.seed(seed)
    torch.manual_seed(seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    name = torch.cuda.get_device_name() if device == "cuda" else f"{torch.get_num_threads()} threads"
    print(f"profile {profile}, seed {seed}, {device} ({name})")
    print(f"torch {torch.__version__}, transformers {version('transformers')}")
    return device


def keep(**values: float | int | str) -> None:
    """Store values in the executed notebook under their names, for the text to quote; no output is shown.

    Outside the book's own environment (myst-nb not installed, as on Colab) it does nothing.
    """
    try:
        from myst_nb import glue
    except ImportError:
        return
    for name, value in values.items():
        glue(
            name, value.item() if hasattr(value, "item") else value, display=False
        )  # numpy's and torch's scalars
