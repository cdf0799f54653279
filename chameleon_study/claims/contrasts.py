"""Contrasts of regimes on a corpus from the stored runs, registered ones in Holm families.

results/honest-*.jsonl + .parquet ─▶ StoredRuns ─ contrast(corpus, first, second) ─▶ intervals, p
                                          ├ family(corpus) ─▶ every registered contrast with its verdict
                                          └ sensitivity_frame() ─▶ the same under other margins

The bootstrap resamples documents or, where documents are pieces of one text, the text: rows of a
WikiText article resemble each other, and drawing rows would make intervals too narrow. So an article's
losses and tokens are summed first. In the mixed stream a row's group is its source; its article comes
from the results of the corpus itself.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import numpy as np
import pandas as pd
import yaml

from chameleon_lite.errors import UserError

from ..records import ARTICLES, CLEAN, FOREIGN, HONEST, TRANSFER, Record, load_records
from ..stored import read_losses
from .scoreboard import REGISTERED
from .statistics import MARGIN, Contrast, holm, mean_interval, verdict

AREA_EPOCHS = 5.0  # of a validation curve, whose first steps show how fast it falls
Reading = tuple[str, str]  # a run's name, and what it read
Losses = tuple[dict[int, np.ndarray], np.ndarray]  # nll sums (N,) by seed, tokens (N,)


@dataclass(frozen=True)
class FamilyMember:
    """A registered contrast on one corpus."""

    contrast: Contrast
    adjusted_p: float
    verdict: str


@cache
def registered() -> dict:
    """The registered file: `contrasts`, `exploratory` ones and `predictions` by name. Treat it as read-only."""
    if not REGISTERED.is_file():
        raise UserError(f"no registered contrasts at {REGISTERED}: run from a clone of the project")
    return yaml.safe_load(REGISTERED.read_text(encoding="utf-8"))


def by_unit(frame: pd.DataFrame, corpus: str, articles: dict[str, str]) -> dict[Reading, tuple]:
    """(run, reading) to nll and tokens (units,), in a fixed order, from one row per document, run and reading.

    articles: for documents named `<corpus>/<document>` the article, if known.
    """
    names = frame["group" if corpus.startswith(ARTICLES) else "document"].astype("category")
    units = [articles.get(name, name) for name in names.cat.categories.astype(str)]
    places, _ = pd.factorize(np.array(units, dtype=object), sort=True)
    keyed = frame[["run", "split", "nll", "tokens"]].assign(unit=places[names.cat.codes])
    summed = keyed.groupby(["run", "split", "unit"], observed=True)[["nll", "tokens"]].sum()
    readings = summed.groupby(level=["run", "split"], observed=True).size()
    ends = readings.to_numpy().cumsum()[:-1]  # a reading's units lie together; a slice of a frame is slow
    parts = zip(readings.index, *(np.split(summed[x].to_numpy(float), ends) for x in ("nll", "tokens")))
    return {(str(run), reading): (nll, tokens) for (run, reading), nll, tokens in parts}


def articles_of(folder: Path) -> dict[str, str]:
    """`<corpus>/<document>` to its article, from the honest study's stored results of WikiText corpora."""
    out: dict[str, str] = {}
    for path in sorted(folder.glob(f"{HONEST}{ARTICLES}*.parquet")):
        corpus = path.stem.removeprefix(HONEST) + "/"
        rows = read_losses(path).loc[lambda frame: frame["split"] == "test"].drop_duplicates("document")
        out |= dict(zip(corpus + rows["document"].astype(str), corpus + rows["group"].astype(str)))
    return out


def judge(family: dict[str, Contrast], margin: float = MARGIN) -> dict[str, FamilyMember]:
    """Each contrast with its verdict, p values Holm-adjusted over the family."""
    adjusted = holm({name: c.p for name, c in family.items()})
    return {n: FamilyMember(c, adjusted[n], verdict(c, adjusted[n], margin)) for n, c in family.items()}


def area(record: Record) -> float | None:
    """Mean validation loss over the first 5 epochs; after an early stop the best counts on. None without a curve."""
    epochs = min(AREA_EPOCHS, record.settings["train"]["epochs"])
    points = [(p["epoch"], p["validation_nll"]) for p in record.curve if p["epoch"] <= epochs]
    if not points:
        return None
    at, values = zip(*points, (epochs, min(nll for _, nll in points)))
    return float(np.trapezoid(values, at) / epochs)


def gap(record: Record) -> float | None:
    """Test minus seen documents, in nats per token; None where the seen ones were not read."""
    seen = record.metrics.get("seen_nll")
    return None if seen is None else record.metrics["test_nll"] - seen


def shared_seeds(parts: Sequence[dict[int, object]]) -> list[int]:
    """The seeds that all parts have."""
    return sorted(set.intersection(*map(set, parts)))


OF_A_RECORD = {"gap": gap, "area": area}


class StoredRuns:
    """The records and per-document losses of all honest experiments of one backbone in a results folder.

    Experiments are picked by name: `honest-*`, nothing else. `four-regimes` shares regimes and a corpus with
    honest-docstrings, but its runs stop by settings of their own: a contrast across both would compare
    settings, and alone it has few of the contrasts that Holm adjusts for. So it decides no claim.
    experiments: how their names begin, if not `honest-`.
    benchmarks: the folder of stored timings, by default `benchmarks/results` next to the results folder.
    """

    def __init__(self, results: Path, backbone="smollm2", draws=10_000, benchmarks=None, experiments=HONEST):
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
    def losses(self) -> dict[Reading, tuple[np.ndarray, np.ndarray]]:
        """(run, reading) to nll (N,) and tokens (N,) of the N units that intervals draw, see `by_unit`."""
        out, corpus_of = {}, {r.name: r.corpus for r in self.all_records}
        articles = articles_of(self.folder)
        for frame in self.documents():
            of_run = frame["run"].map(corpus_of).astype(str)
            of_reading = frame["split"].astype(str).where(frame["split"].str.startswith(TRANSFER), TRANSFER)
            other = of_reading.str.removeprefix(TRANSFER)
            # by a column's name: given a series, pandas prints all of it into an exception that it drops
            keyed = frame.assign(corpus=other.where(other != "", of_run))
            for corpus, rows in keyed.groupby("corpus", observed=True, sort=False):
                out |= by_unit(rows, corpus, articles)
        return out

    def nll(self, corpus: str, regime: str, reading: str = "test") -> Losses | None:
        """nll sums (N,) by seed and tokens (N,), or None where there is no such run or reading."""
        runs = [r for r in self.runs(corpus, regime) if (r.name, reading) in self.losses]
        if not runs:
            return None
        return {r.seed: self.losses[r.name, reading][0] for r in runs}, self.losses[runs[0].name, reading][1]

    def beside(self, experiments: str, backbone: str = "") -> "StoredRuns":
        """The runs of experiments of another name, or of another backbone, in the same folder."""
        return StoredRuns(self.folder, backbone or self.backbone, self.draws, self.benchmarks, experiments)

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

    def over_seeds(self, corpus: str, value: Callable, *regimes: str) -> Contrast | None:
        """`value(record)` of a regime, or the first's minus that of a second: one per seed, seeds alone are drawn."""
        of_record = ({r.seed: value(r) for r in self.runs(corpus, regime)} for regime in regimes)
        found = [{s: x for s, x in by_seed.items() if x is not None} for by_seed in of_record]
        if not (seeds := shared_seeds(found)):
            return None
        gaps = np.array([[found[0][s] - sum(of[s] for of in found[1:])] for s in seeds])  # (S, 1)
        return mean_interval(gaps, np.ones(1), draws=min(self.draws, 2_000))

    def measured(self, corpus: str, name: str) -> dict[str, Contrast]:
        """A contrast of the file by name, one for each reading where it is of several; {} where runs are missing."""
        plan = (registered()["contrasts"] | registered()["exploratory"])[name]
        pair, kind = [self.lowest(corpus, plan[side]) for side in ("first", "second")], plan.get("of", "test")
        if corpus not in plan.get("only", [corpus]):
            return {}
        if kind == "transfer":
            others = sorted({reading for _, reading in self.losses if reading.startswith(TRANSFER)})
            out = {f"{name} on {r.removeprefix(TRANSFER)}": self.contrast(corpus, *pair, r) for r in others}
        elif kind in OF_A_RECORD:
            out = {name: self.over_seeds(corpus, OF_A_RECORD[kind], *pair)}
        elif kind == "foreign":
            out = {name: self.foreign_cost(corpus, *pair)}
        else:
            out = {name: self.contrast(corpus, *pair)}
        return {name: c for name, c in out.items() if c is not None}

    def lowest(self, corpus: str, regimes: str | list[str]) -> str:
        """Of several regimes the one whose choice had the lowest validation loss in its own sweep."""
        if isinstance(regimes, str):
            return regimes
        trials = {r: runs[0].learning_rate_trials for r in regimes if (runs := self.runs(corpus, r))}
        losses = {r: [np.mean([*by_seed.values()]) for by_seed in of.values()] for r, of in trials.items()}
        return min(trials, key=lambda r: min(losses[r], default=np.inf), default=regimes[0])

    def foreign_cost(self, corpus: str, *regimes: str) -> Contrast | None:
        """What 50 % foreign rows cost a regime on the clean rows, or the first minus the second of two.

        Each seed draws clean rows of its own, so the interval is over seeds, which hold the draw of documents too.
        """

        def cost(record: Record) -> float | None:
            foreign, clean = (self.losses.get((record.name, f"{rows}50")) for rows in (FOREIGN, CLEAN))
            return foreign and clean and float((foreign[0] - clean[0]).sum() / foreign[1].sum())

        return self.over_seeds(corpus, cost, *regimes)

    def family(self, corpus: str) -> dict[str, FamilyMember]:
        """Every registered contrast that is possible on a corpus, Holm-adjusted within its family."""
        if corpus not in self._families:
            families, members = {"claims": {}, "beside": {}}, {}
            for name, plan in registered()["contrasts"].items():
                found = self.measured(corpus, name)
                if (family := plan.get("family", "claims")) != "own":
                    families[family] |= found
                    continue
                cost = self.foreign_cost(corpus, plan["second"]) if plan["of"] == "foreign" else None
                for key, c in found.items():
                    members |= judge({key: c}, cost.difference / 4 if cost else MARGIN)
            for family in families.values():
                members |= judge(family)
            self._families[corpus] = members
        return self._families[corpus]

    def family_frame(self) -> pd.DataFrame:
        """One row per registered contrast and corpus, with n, interval, adjusted p and verdict."""
        rows, plans = [], registered()["contrasts"]
        for corpus in self.corpora:
            for name, j in self.family(corpus).items():
                c, plan = j.contrast, plans[name.split(" on ")[0]]
                row = {"corpus": corpus, "contrast": name, "differs": ", ".join(plan["differs"])} | c.row()
                row |= {"family": plan.get("family", "claims"), "low90": c.low90, "high90": c.high90}
                row |= {"adjusted p": j.adjusted_p, "n seeds": c.n, "documents": c.documents}
                row |= {"interval by": c.decided_by, "detectable": c.detectable(), "verdict": j.verdict}
                rows.append(row)
        return pd.DataFrame(rows)

    def sensitivity_frame(self) -> pd.DataFrame:
        """The verdict of each deciding contrast and corpus under other margins, the last 10 % of R2's gain."""
        plan, rows = registered(), []
        for corpus in self.corpora:
            room = self.contrast(corpus, "R2", "R0")
            for name, j in self.family(corpus).items():
                if plan["contrasts"][name.split(" on ")[0]].get("family", "claims") == "claims":
                    row = {"corpus": corpus, "contrast": name} | j.contrast.row()
                    row |= {f"{m:g}": verdict(j.contrast, j.adjusted_p, m) for m in plan["sensitivity"]}
                    if room and (margin := -room.difference / 10) > 0:
                        row |= {"10 % of R2": verdict(j.contrast, j.adjusted_p, margin), "that is": margin}
                    rows.append(row)
        return pd.DataFrame(rows)
