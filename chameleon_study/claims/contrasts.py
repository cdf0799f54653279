"""Contrasts of regimes on a corpus from the stored runs, registered ones as one Holm family.

results/honest-*.jsonl + .parquet ─▶ StoredRuns ─ contrast(corpus, first, second) ─▶ intervals, p
                                          └ family(corpus) ─▶ every registered contrast with its verdict

The bootstrap resamples documents or, where documents are pieces of one text, the text: rows of a
WikiText article resemble each other, and drawing rows would make intervals too narrow. So an article's
losses and tokens are summed first. In the mixed stream a row's group is its source; its article comes
from the results of the corpus itself.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
import yaml

from chameleon_lite.errors import UserError

from ..records import ARTICLES, FOREIGN, HONEST, TRANSFER, Record, load_records
from ..stored import read_losses
from .statistics import MARGIN, Contrast, holm, mean_interval, verdict

REGISTERED = Path(__file__).resolve().parents[2] / "experiments" / "registered.yaml"
Losses = tuple[dict[int, np.ndarray], np.ndarray]  # nll sums (N,) by seed, tokens (N,)


@dataclass(frozen=True)
class FamilyMember:
    """A registered contrast on one corpus."""

    contrast: Contrast
    adjusted_p: float
    verdict: str


def registered() -> dict:
    """The registered file: `contrasts` and `predictions` by name."""
    if not REGISTERED.is_file():
        raise UserError(f"no registered contrasts at {REGISTERED}: run from a clone of the project")
    return yaml.safe_load(REGISTERED.read_text(encoding="utf-8"))


def by_unit(frame: pd.DataFrame, corpus: str, articles: dict[str, str]) -> tuple[np.ndarray, np.ndarray]:
    """A reading's nll and tokens (units,), in a fixed order, from one row per document of a corpus.

    articles: for documents named `<corpus>/<document>` the article, if known.
    """
    if corpus.startswith(ARTICLES):
        unit = frame["group"].astype(str)
    else:
        unit = frame["document"].astype(str).map(lambda name: articles.get(name, name))
    summed = frame.groupby(unit.to_numpy(), sort=True)[["nll", "tokens"]].sum()
    return summed["nll"].to_numpy(float), summed["tokens"].to_numpy(float)


def articles_of(folder: Path) -> dict[str, str]:
    """`<corpus>/<document>` to its article, from the honest study's stored results of WikiText corpora."""
    out: dict[str, str] = {}
    for path in sorted(folder.glob(f"{HONEST}{ARTICLES}*.parquet")):
        corpus = path.stem.removeprefix(HONEST) + "/"
        rows = read_losses(path)
        rows = rows[rows["split"] == "test"].drop_duplicates("document")
        out |= dict(zip(corpus + rows["document"].astype(str), corpus + rows["group"].astype(str)))
    return out


def judge(family: dict[str, Contrast], margin: float = MARGIN) -> dict[str, FamilyMember]:
    """Each contrast with its verdict, p values Holm-adjusted over the family."""
    adjusted = holm({name: c.p for name, c in family.items()})
    return {n: FamilyMember(c, adjusted[n], verdict(c, adjusted[n], margin)) for n, c in family.items()}


def shared_seeds(parts: Sequence[dict[int, object]]) -> list[int]:
    """The seeds that all parts have."""
    return sorted(set.intersection(*map(set, parts)))


class StoredRuns:
    """The records and per-document losses of all honest experiments of one backbone in a results folder.

    Experiments are picked by name: `honest-*`, nothing else. `four-regimes` shares regimes and a corpus with
    honest-docstrings, but its runs stop by settings of their own: a contrast across both would compare
    settings, and alone it has few of the contrasts that Holm adjusts for. So it decides no claim.
    experiments: how their names begin, if not `honest-`; see `with_foreign`.
    benchmarks: the folder of stored timings, by default `benchmarks/results` next to the results folder.
    """

    def __init__(
        self,
        results: Path,
        backbone="smollm2",
        draws=10_000,
        benchmarks: Path | None = None,
        experiments=HONEST,
    ) -> None:
        self.folder, self.backbone, self.draws, self.experiments = Path(results), backbone, draws, experiments
        self.benchmarks = Path(benchmarks or self.folder.parent / "benchmarks" / "results")
        paths = sorted(self.folder.glob(f"{experiments}*.jsonl"))
        self.all_records = [r for path in paths for r in load_records(path) if r.status == "done"]
        self._families: dict[str, dict[str, FamilyMember]] = {}

    @cached_property
    def records(self) -> dict[tuple[str, str], list[Record]]:
        """(corpus, regime) to its records of this backbone, by seed."""
        out: dict[tuple[str, str], list[Record]] = {}
        for r in sorted(self.all_records, key=lambda r: r.seed):
            if r.backbone == self.backbone:
                out.setdefault((r.corpus, r.regime), []).append(r)
        return out

    def runs(self, corpus: str, regime: str) -> list[Record]:
        """A regime's records on a corpus, by seed; [] where there are none."""
        return self.records.get((corpus, regime), [])

    def documents(self) -> Iterator[pd.DataFrame]:
        """The per-document losses of each experiment."""
        return map(read_losses, sorted(self.folder.glob(f"{self.experiments}*.parquet")))

    @property
    def corpora(self) -> list[str]:
        """Corpora with at least one record, in a fixed order."""
        return sorted({corpus for corpus, _ in self.records})

    @cached_property
    def losses(self) -> dict[tuple[str, str], tuple[np.ndarray, np.ndarray]]:
        """(run, reading) to nll (N,) and tokens (N,) of the N units that intervals draw, see `by_unit`."""
        out, corpus_of = {}, {r.name: r.corpus for r in self.all_records}
        articles = articles_of(self.folder)
        for frame in self.documents():
            for (run, reading), rows in frame.groupby(["run", "split"], observed=True, sort=False):
                other = reading.removeprefix(TRANSFER)
                corpus = other if other != reading else corpus_of.get(run, "")
                out[run, reading] = by_unit(rows, corpus, articles)
        return out

    def nll(self, corpus: str, regime: str, reading: str = "test") -> Losses | None:
        """nll sums (N,) by seed and tokens (N,), or None where there is no such run or reading."""
        runs = [r for r in self.runs(corpus, regime) if (r.name, reading) in self.losses]
        if not runs:
            return None
        return {r.seed: self.losses[r.name, reading][0] for r in runs}, self.losses[runs[0].name, reading][1]

    @cached_property
    def _foreign(self) -> "StoredRuns":
        return StoredRuns(self.folder, self.backbone, self.draws, self.benchmarks, FOREIGN)

    def with_foreign(self, corpus: str) -> "StoredRuns":
        """The runs that hold a corpus's readings with foreign rows: these, or the `foreign-*` ones."""
        runs = {r.name for (where, _), of in self.records.items() if where == corpus for r in of}
        here = any(run in runs and reading.startswith(FOREIGN) for run, reading in self.losses)
        return self if here or self.experiments == FOREIGN else self._foreign

    def contrast(self, corpus: str, first: str, second: str, reading: str = "test") -> Contrast | None:
        """first − second in nats per token over shared seeds and documents; None where one is missing."""
        return self.sum_of([(corpus, first, reading, 1.0), (corpus, second, reading, -1.0)])

    def sum_of(self, terms: list[tuple[str, str, str, float]]) -> Contrast | None:
        """The weighted sum of (corpus, regime, reading, weight) over the same documents, seed by seed."""
        parts = [self.nll(corpus, regime, reading) for corpus, regime, reading, _ in terms]
        if None in parts or len({len(tokens) for _, tokens in parts}) > 1:
            return None
        seeds, weights = shared_seeds([nll for nll, _ in parts]), [weight for *_, weight in terms]
        if not seeds:
            return None
        total = np.stack([sum(w * nll[s] for w, (nll, _) in zip(weights, parts)) for s in seeds])  # (S, N)
        return mean_interval(total, parts[0][1], draws=self.draws)

    def over_seeds(self, corpus: str, value, first: str, second: str) -> Contrast | None:
        """first − second of `value(record)`, one number per seed, with an interval over seeds alone."""
        a, b = (
            {r.seed: v for r in self.runs(corpus, regime) if (v := value(r)) is not None}
            for regime in (first, second)
        )
        if not (seeds := shared_seeds([a, b])):
            return None
        gaps = np.array([[a[s] - b[s]] for s in seeds])  # (S, 1)
        return mean_interval(gaps, np.ones(1), draws=min(self.draws, 2_000))

    def family(self, corpus: str) -> dict[str, FamilyMember]:
        """Every registered contrast that is possible on a corpus, Holm-adjusted together."""
        if corpus not in self._families:
            plan = registered()["contrasts"].items()
            contrasts = {name: self.contrast(corpus, c["first"], c["second"]) for name, c in plan}
            self._families[corpus] = judge({name: c for name, c in contrasts.items() if c is not None})
        return self._families[corpus]

    def family_frame(self) -> pd.DataFrame:
        """One row per registered contrast and corpus, with n, interval, adjusted p and verdict."""
        rows = []
        for corpus in self.corpora:
            for name, j in self.family(corpus).items():
                c = j.contrast
                row = {"corpus": corpus, "contrast": name, "registered": True} | c.row()
                row |= {"low90": c.low90, "high90": c.high90, "adjusted p": j.adjusted_p, "n seeds": c.n}
                row |= {"documents": c.documents, "interval by": c.decided_by, "verdict": j.verdict}
                rows.append(row)
        return pd.DataFrame(rows)
