"""The command of the benchmarks, which joins `chameleon-lite` where this package is installed."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer()


@app.command()
def bench(
    rows: Annotated[list[str] | None, typer.Argument(help="B1 … B20, ladder, roofline, growth …")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Small workloads: two minutes in all.")] = False,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1 …; default: what is there.")] = None,
    out: Annotated[Path | None, typer.Option(help="Default: benchmarks/results/<machine>.json.")] = None,
) -> None:
    """Time our way against what one would otherwise run, on this machine; each row is written as it finishes.

    Example: chameleon-lite bench B5 B6 --quick
    """
    from .report import run_rows

    run_rows(rows or [], device=device, quick=quick, out=out, say=typer.echo)
