"""`chameleon-lite stream`: the stream study and the world's phase diagram."""

from pathlib import Path
from typing import Annotated

import typer

from chameleon_lite.app.cli import DataDir, Device


def stream(
    corpus: Annotated[Path, typer.Option(help="The exported corpus of the stream.")] = Path("stream.jsonl"),
    profile: Annotated[str, typer.Option(help="smoke or paper.")] = "smoke",
    backbone: Annotated[str, typer.Option(help="A backbone's name.")] = "smollm2",
    out: Annotated[
        Path, typer.Option("--out", help="Folder of results; a run goes on from what it holds.")
    ] = Path("runs/streams"),
    only: Annotated[list[str] | None, typer.Option(help="Units to run, a pattern (repeatable).")] = None,
    seconds: Annotated[
        float | None, typer.Option(help="Begin no further unit after so many seconds.")
    ] = None,
    device: Device = None,
    export: Annotated[
        bool, typer.Option("--export", help="Build the corpus from --data-dir, and stop.")
    ] = False,
    data_dir: DataDir = None,
    results: Annotated[
        Path | None, typer.Option("--results", help="Also store the results in this folder.")
    ] = None,
    world: Annotated[bool, typer.Option("--world", help="The phase diagram of the world instead.")] = False,
    workers: Annotated[int, typer.Option(min=1, help="Processes of the phase diagram.")] = 1,
) -> None:
    """Score a stream of documents and learn from it, by every method of the stream study.

    Example: chameleon-lite stream --corpus stream.jsonl --profile smoke --backbone tiny
    """
    from chameleon_lite.errors import UserError

    if world:
        _diagram(profile, out, workers)
    elif not export:
        _study(corpus, profile, backbone, out, only or None, seconds, device)
        if results is not None:
            from .run import pack

            pack(out, results)
    elif data_dir is None:
        raise UserError("--export reads WikiText's and Alpaca's files: give --data-dir FOLDER")
    else:
        from .corpus import export as export_corpus

        typer.echo(f"exported to {export_corpus(data_dir, corpus)}")


def _diagram(profile: str, out: Path, workers: int) -> None:
    import pandas as pd

    from .diagram import diagram

    small = {"axes": {"purity": (0.25, 1.0)}, "past": 8, "streams": 2, "steps": 20}
    frame = pd.DataFrame(diagram(workers=workers, **(small if profile == "smoke" else {})))
    out.mkdir(parents=True, exist_ok=True)
    frame.to_csv(out / "diagram.csv", index=False)
    typer.echo(frame.round(3).to_string(index=False))


def _study(corpus: Path, profile: str, backbone: str, out: Path, only, seconds, device) -> None:
    import torch

    from chameleon_lite.app.own_texts import read_jsonl
    from chameleon_lite.backbone import load_backbone
    from chameleon_lite.errors import unknown

    from .material import PROFILES
    from .run import run_streams
    from .tables import tables

    if profile not in PROFILES:
        raise unknown("profile", profile, PROFILES)
    model = load_backbone(backbone, device=device or ("cuda" if torch.cuda.is_available() else "cpu"))
    store = run_streams(PROFILES[profile], model, read_jsonl(corpus), out, only, seconds, typer.echo)
    for frame in tables(store):
        typer.echo("\n" + frame.round(4).to_string(index=False))
