"""The commands of the reproduction, which join `chameleon-lite` where this package is installed."""

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from chameleon_lite import files
from chameleon_lite.app.cli import Dask, DataDir, Device, Processes, option
from chameleon_lite.app.outputs import claimed
from chameleon_lite.errors import UserError

from .streams.command import stream

app = typer.Typer()
app.command()(stream)
Results = Annotated[Path, option("Folder of packed records.", "--results")]
Into = Annotated[Path | None, option("Also pack the results into this folder.", "--results")]
Csv = Annotated[Path | None, option("Write the table to this CSV file.", "--csv")]
AsJson = Annotated[bool, option("All of it as JSON.", "--json")]
Recompute = Annotated[bool, option("From the records, whatever is stored.", "--recompute")]
File = Annotated[Path, typer.Argument(help="An experiment's YAML file.")]
Profile = Annotated[str, option("smoke, colab or paper.")]
Backbone = Annotated[str | None, option("Use this backbone instead of the file's.")]


@app.command()
def params(backbone: Annotated[str, option("A backbone's name.")] = "random-gpt2") -> None:
    """Derive the parameter column of Tables 1 and 2 by building each part and counting it.

    Example: chameleon-lite params --backbone random-gpt2
    """
    from .tables import parameter_frame

    typer.echo(parameter_frame(backbone).to_string(index=False))


@app.command()
def run(
    experiment: File,
    profile: Profile = "smoke",
    backbone: Backbone = None,
    corpus: Annotated[list[str] | None, option("Use this corpus (repeatable).")] = None,
    data_dir: DataDir = None,
    seeds: Annotated[int | None, option("Number of reported seeds.", least=1)] = None,
    device: Device = None,
    out: Annotated[Path, option("Folder of raw runs.", "--out")] = Path("runs"),
    resume: Annotated[bool, option("Keep complete runs, or run all.", "--resume/--again")] = True,
    results: Into = None,
    workers: Processes = None,
    dask: Dask = None,
) -> None:
    """Run an experiment: every regime × corpus × seed it names that is not there yet.

    Example: chameleon-lite run experiments/four-regimes.yaml --profile smoke
    """
    from chameleon_lite.processes import leave

    from .config import load_experiment
    from .provenance import pack_spans
    from .records import pack
    from .released.tables import is_released, released_frame
    from .run import expected_names, run_experiment
    from .tables import summary_frame

    settings = load_experiment(experiment, profile, backbone=backbone, corpora=corpus or None, seeds=seeds)
    how = {"device": device, "resume": resume, "workers": workers, "dask": dask}
    records = run_experiment(settings, runs=out, data_dir=data_dir, say=_say, **how)
    leave()
    if _silent():
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
    experiment: File,
    profile: Profile = "smoke",
    backbone: Backbone = None,
    data_dir: DataDir = None,
    device: Device = None,
    only: Annotated[list[str] | None, option("Make this proof alone (repeatable).")] = None,
    results: Into = None,
) -> None:
    """Make the proofs of what the released tables measure, on an experiment's corpus and backbone.

    Example: chameleon-lite prove experiments/table1-released-lite.yaml --profile smoke
    """
    from chameleon_lite.backbone import load_backbone
    from chameleon_lite.processes import Processes

    from .config import load_experiment
    from .provenance import default_command
    from .records import refuse_unfit
    from .released.proofs import prove_all
    from .released.proofs.store import load_proofs, store_proofs
    from .released.proofs.subject import Subject

    settings = load_experiment(experiment, profile, backbone=backbone)
    if results is not None:
        refuse_unfit(settings.name, settings.profile, settings.backbone)
        load_proofs(results)  # a damaged file is named before the work
    model = load_backbone(settings.backbone, device=device or str(Processes().device))
    for name in settings.corpora:
        subject = Subject(settings, model, name, data_dir, say=_say)
        proofs = prove_all(subject, default_command(), only or None)
        for proof in proofs:
            typer.echo(f"{proof.proof:22} {proof.shows}")
        if results is not None:
            typer.echo(f"kept in {store_proofs(proofs, results)}")


@app.command()
def tables(
    results: Results = Path("results"),
    csv: Csv = None,
    wide: Annotated[bool, option("Every column, in as many characters.", "--wide")] = False,
    as_json: AsJson = False,
    recompute: Recompute = False,
    write: Annotated[bool, option("Also write tables.json there.", "--write")] = False,
) -> None:
    """Paper value, our value with its interval, protocol, model, data, seeds and command.

    Stored tables are shown while records and losses are those they were made from.

    Example: chameleon-lite tables --results results
    """
    import pandas as pd

    from .screen import as_text, stored_rows, write_rows

    with _csv(csv, results) as save:
        if not (rows := [] if recompute or write else stored_rows(results)):
            from .tables import all_rows

            rows = all_rows(results)
        if not rows:
            raise UserError(f"no records in {results}/: run an experiment with --results {results}")
        save(pd.DataFrame(rows, dtype=object))
        if write:
            write_rows(rows, results)
        if as_json:
            _show(json.dumps(rows, ensure_ascii=False))
        elif wide:
            kinds = [[r for r in rows if ("protocol" in r) == released] for released in (True, False)]
            frames = [pd.DataFrame(of_kind, dtype=object).fillna("–") for of_kind in kinds if of_kind]
            _show("\n".join(frame.to_string(index=False) + "\n" for frame in frames))
        else:
            _show(as_text(rows))


@app.command()
def claims(
    results: Results = Path("results"),
    backbone: Annotated[str, option("The backbone whose records decide.")] = "smollm2",
    benchmarks: Annotated[Path | None, option("Timings; default: benchmarks/results next to them.")] = None,
    csv: Csv = None,
    contrasts: Annotated[Path | None, option("Write all contrasts to this CSV file.")] = None,
    write: Annotated[bool, option("Also write verdicts.json there.", "--write")] = False,
    wide: Annotated[bool, option("Also the numbers of each corpus.", "--wide")] = False,
    as_json: AsJson = False,
    recompute: Recompute = False,
) -> None:
    """The ledger: what the paper claims, part by part, with the verdicts that the records lead to.

    Stored verdicts are shown while results, timings, contrasts and rules are those they were made from.

    Example: chameleon-lite claims --results results
    """
    from .claims.scoreboard import as_text, evidence_key, ledger_frame, stored_verdicts, write_verdicts

    with _csv(csv, results) as save, _csv(contrasts, results) as save_contrasts:
        timings = benchmarks or results.parent / "benchmarks" / "results"
        key = evidence_key(results, timings, backbone, str(benchmarks))
        rows = {} if write or recompute else stored_verdicts(results, key)
        if not rows:
            from .claims.ledger import checked, ledger

            checked(results, backbone, benchmarks)
            rows = ledger(results, backbone, benchmarks=benchmarks)
        _show(json.dumps([*rows.values()], ensure_ascii=False) if as_json else as_text(rows, wide))
        save(ledger_frame(rows))
        if contrasts is not None:
            from .claims.contrasts import StoredRuns

            save_contrasts(StoredRuns(results, backbone).family_frame())
        if write:
            write_verdicts(rows, results, key)


def _show(text: str) -> None:
    """Print what a command found; a reader that leaves early, as `head` does, has what it wanted."""
    try:
        typer.echo(text)
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextmanager
def _csv(path: Path | None, results: Path) -> Iterator[Callable]:
    """Hold a CSV file, which is no part of the results; yields what writes a table to it."""
    if path is None:
        yield lambda frame: None
        return
    with claimed(path, [p for p in results.glob("*") if p.suffix != ".csv"], overwrite=True) as place:

        def save(frame) -> None:
            with files.atomic(place) as part:
                frame.to_csv(part, index=False)

        yield save


def _silent() -> bool:
    """Whether this is one of several processes of a launcher and not the first, the only one that prints."""
    return os.environ.get("RANK", "0") != "0"


def _say(text: str) -> None:
    if not _silent():
        typer.echo(text, err=True)
