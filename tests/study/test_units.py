"""Intervals draw articles, not their paragraphs."""

import numpy as np
import pandas as pd
import pytest

from chameleon_study.claims.contrasts import articles_of, by_unit
from chameleon_study.claims.statistics import contrast

ROWS = pd.DataFrame(
    {
        "document": ["a", "b", "c", "d"],
        "group": ["x", "y", "x", "y"],
        "nll": [1.0, 2.0, 3.0, 4.0],
        "tokens": [1, 2, 3, 4],
        "split": "test",
        "run": "r",
    }
)
KEY = ("r", "test")


def test_wikitexts_rows_are_summed_by_article():
    nll, tokens = by_unit(ROWS, "wikitext-2-lite", {})[KEY]
    assert nll.tolist() == [4.0, 6.0] and tokens.tolist() == [4.0, 6.0]


def test_other_corpora_keep_their_documents():
    nll, tokens = by_unit(ROWS, "docstrings", {})[KEY]
    assert nll.tolist() == [1.0, 2.0, 3.0, 4.0] and tokens.sum() == 10


def test_the_mixed_streams_rows_find_their_article(tmp_path):
    ROWS.to_parquet(tmp_path / "honest-wikitext-2-lite.parquet")
    mixed = ROWS.assign(
        document=["wikitext-2-lite/" + d if d != "b" else "other/b" for d in ROWS["document"]], group="source"
    )
    nll, _ = by_unit(mixed, "mixed", articles_of(tmp_path))[KEY]
    assert sorted(nll.tolist()) == [2.0, 4.0, 4.0]  # b alone, a with c of article x, d of article y


def test_runs_and_readings_are_kept_apart():
    rows = pd.concat([ROWS, ROWS.assign(run="s", nll=9.0), ROWS.assign(split="seen", nll=8.0)])
    found = by_unit(rows, "docstrings", {})
    assert {key: nll.sum() for key, (nll, _) in found.items()} == {
        KEY: 10,
        ("s", "test"): 36,
        ("r", "seen"): 32,
    }


def test_rows_of_one_article_are_no_independent_documents():
    """Paragraphs that share their article's difference: drawing rows would make the interval far too narrow."""
    rng = np.random.default_rng(0)
    per_article = rng.normal(0.0, 1.0, 30).repeat(20)
    frame = pd.DataFrame(
        {
            "document": [str(i) for i in range(600)],
            "group": [f"{i // 20:02}" for i in range(600)],
            "nll": per_article,
            "tokens": 1,
            "split": "test",
            "run": "r",
        }
    )
    width = {}
    for corpus in ("wikitext-2-lite", "docstrings"):
        nll, tokens = by_unit(frame, corpus, {})[KEY]
        found = contrast(np.stack([nll] * 5), np.zeros((5, len(nll))), tokens, draws=500)
        width[corpus] = found.high - found.low
    assert width["wikitext-2-lite"] == pytest.approx(20**0.5 * width["docstrings"], rel=0.35)
