"""The commands for one's own texts: `fit` trains an adapter, `adapt` uses it."""

from pathlib import Path
from typing import Annotated

import typer

LAYERS = "Rank of LoRA in the layers; 0: none. Features cannot be cached then: every step runs the backbone."
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1 …; default: what is there.")]
Processes = Annotated[
    int | None, typer.Option("--workers", min=1, help="Processes that share the work, each with its own GPU.")
]
Dask = Annotated[str | None, typer.Option("--dask", help="A Dask scheduler whose workers share the work.")]


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

    from .adapt.fit import fit as run
    from .config import FitSettings, TokenSettings, TrainSettings
    from .errors import UserError

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
    from .adapt.stream import adapt_file
    from .errors import UserError, unknown

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
