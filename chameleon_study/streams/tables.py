"""What a run of the stream study shows: gains, running losses, from where a method pays, and the verdicts."""

import numpy as np
import pandas as pd
import torch

from .material import order_of
from .run import Store
from .units import BATCH
from .verdicts import verdict_frame


def order_from(store: Store, name: str) -> np.ndarray:
    """The documents (M,) of an order such as "random-0", from what is stored alone."""
    kind, seed = name.rsplit("-", 1)
    facts = next(r["data"] for r in store.records.values() if "data" in r)
    number = {source: i for i, source in enumerate(facts["sources"])}
    source = torch.tensor([number[s] for s in store.frame["source"]])
    return order_of(kind, source, int(seed)).numpy()


def running(
    store: Store, first: str, second: str, order: str = "random-0", window: int = 1_024
) -> pd.DataFrame:
    """first − second along an order, in nats per token: over all so far, and over the last `window`."""
    losses, at = store.losses(), order_from(store, order)
    gap = pd.Series((losses[first, order] - losses[second, order])[at])
    tokens = pd.Series(store.frame["tokens"].to_numpy(float)[at])
    recent = gap.rolling(window).sum() / tokens.rolling(window).sum()
    return pd.DataFrame(
        {"documents": np.arange(1, len(at) + 1), "so far": gap.cumsum() / tokens.cumsum(), "recent": recent}
    )


def pays_from(store: Store, first: str, second: str, order: str = "random-0", margin: float = 0.0) -> float:
    """The document from which `first` stays lower than `second` by the margin, over all so far; or nan."""
    lower = running(store, first, second, order)["so far"] < -margin
    if not lower.iloc[-1]:
        return float("nan")
    return 1.0 if lower.all() else float(lower[~lower].index[-1] + 2)


def method_frame(store: Store) -> pd.DataFrame:
    """One row per method: nats per token over the random orders, gain, from where it pays, cost."""
    losses, tokens = store.losses(), store.frame["tokens"].to_numpy(float)
    frozen = next((v.sum() / tokens.sum() for (m, _), v in losses.items() if m == "frozen"), np.nan)
    rows = []
    for name in dict.fromkeys(method for method, _ in losses):
        nats = {o: v.sum() / tokens.sum() for (m, o), v in losses.items() if m == name}
        random = [v for o, v in nats.items() if o.startswith("random")] or [np.nan]
        record = store.records.get(f"stream {name}", {})
        row = {
            "method": name,
            "nats": np.mean(random),
            "gain": frozen - np.mean(random),
            "spread": np.ptp(random),
        }
        row |= {o: v for o, v in nats.items() if not o.startswith("random")}
        for other in ("frozen", "R2"):
            both = (name, "random-0") in losses and (other, "random-0") in losses and name != other
            row[f"pays over {other}"] = pays_from(store, name, other) if both else np.nan
        row |= {"rate": record.get("rate"), "edge": record.get("at_edge")}
        row |= {"s per 1,000": record.get("seconds_per_1000_tokens"), "bytes": record.get("bytes_per_memory")}
        rows.append(row)
    return pd.DataFrame(rows)


def tables(store: Store) -> list[pd.DataFrame]:
    """Every method, the registered contrasts, and the streams with other rows in between."""
    robust = [{"method": r["method"]} | r["nats"] for u, r in store.records.items() if u.startswith("robust")]
    small = [
        {"method": r["method"], "batch": r["batch"]} | r["nats_per_token"]
        for r in store.records.values()
        if r.get("batch", BATCH) != BATCH
    ]
    verdicts = verdict_frame(store.losses(), store.frame["tokens"].to_numpy(float))
    frames = [method_frame(store), verdicts, pd.DataFrame(robust), pd.DataFrame(small)]
    return [frame for frame in frames if not frame.empty]
