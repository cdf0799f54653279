"""What is drawn anew for an interval: documents, or, where documents are pieces of one text, the text.

A row of WikiText is a paragraph or a heading, and rows of one article resemble each other; drawing rows would make
intervals too narrow. So an article's losses and tokens are summed before anything is drawn. In the mixed stream a
row's source stands where its article would; the article is looked up in the results of the corpus itself.
"""

from pathlib import Path

import numpy as np
import pandas as pd

HONEST = "honest-"  # files of results that the honest study's experiments are packed into
TRANSFER = "transfer:"  # readings named so are of another corpus's test documents
ARTICLES = "wikitext"  # corpora of that name: their rows' `group` is the article


def by_unit(frame: pd.DataFrame, corpus: str, articles: dict[str, str]) -> tuple[np.ndarray, np.ndarray]:
    """A reading's nll and tokens (units,), units in a fixed order; frame: document, group, nll, tokens, one row each.

    corpus: whose documents they are; articles: for documents named `<corpus>/<document>` the article, if known.
    """
    if corpus.startswith(ARTICLES):
        unit = frame["group"].astype(str)
    else:
        unit = frame["document"].astype(str).map(lambda name: articles.get(name, name))
    summed = frame.groupby(unit.to_numpy(), sort=True)[["nll", "tokens"]].sum()
    return summed["nll"].to_numpy(float), summed["tokens"].to_numpy(float)


def articles_of(folder: Path, prefix: str) -> dict[str, str]:
    """`<corpus>/<document>` to its article, from the stored results of WikiText corpora."""
    out: dict[str, str] = {}
    for path in sorted(folder.glob(f"{prefix}{ARTICLES}*.parquet")):
        corpus = path.stem.removeprefix(prefix)
        own = pd.read_parquet(path, columns=["document", "group", "split"])
        own = own[own["split"] == "test"].drop_duplicates("document")
        out |= {
            f"{corpus}/{d}": f"{corpus}/{g}"
            for d, g in zip(own["document"].astype(str), own["group"].astype(str))
        }
    return out
