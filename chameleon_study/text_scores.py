"""What is counted in generated text: agreement with a reference, variety, repetition.

ROUGE-L: F1 over the longest common subsequence of words (Lin 2004). Distinct-n: distinct n-grams of tokens over all
n-grams (Li et al. 2016, "A diversity-promoting objective function for neural conversation models"). Repeated: one minus
the distinct share of 4-grams, seq-rep-4 of Welleck et al. 2020 ("Neural text generation with unlikelihood training").
"""

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import pandas as pd

from chameleon_lite.errors import UserError

REPEATED = 4  # tokens of an n-gram that counts as repeated if it occurs earlier in the same text
COLUMNS = ("rouge_l", "distinct_1", "distinct_2", "repeated", "batch_distinct_1", "batch_distinct_2")


def scorer() -> Callable:
    """torchmetrics' rouge_score; UserError where it is not installed."""
    try:
        from torchmetrics.functional.text.rouge import rouge_score
    except ImportError:
        raise UserError("ROUGE-L needs torchmetrics: pip install 'chameleon-lite[generate]'") from None
    return rouge_score


def rouge_l(written: Sequence[str], references: Sequence[str]) -> np.ndarray:
    """ROUGE-L F1 (D,) of texts and references, in 0 … 1; words are runs of a … z and 0 … 9."""
    score, pairs = scorer(), zip(written, references, strict=True)
    return np.array([float(score(*pair, rouge_keys="rougeL")["rougeL_fmeasure"]) for pair in pairs])


def distinct(texts: Iterable[Sequence[int]], n: int) -> float:
    """Distinct over all n-grams of some texts' tokens, none across two texts; nan without any."""
    grams = [tuple(text[i : i + n]) for text in texts for i in range(len(text) - n + 1)]
    return len(set(grams)) / len(grams) if grams else float("nan")


def repeated(text: Sequence[int]) -> float:
    """Share of a text's 4-grams of tokens that occur in it before, in 0 … 1."""
    return 1 - distinct([text], REPEATED)


def document_scores(tokens: np.ndarray, agreement: np.ndarray, batch: np.ndarray) -> pd.DataFrame:
    """One row per document: agreement (D,), its tokens' (D, M) variety and repetition, and its batch's variety.

    Every document carries the value of its cluster batch (D,), which n-grams that its documents share lower.
    """
    texts = pd.Series(tokens.tolist())
    variety = {f"distinct_{n}": [distinct([t], n) for t in texts] for n in (1, 2)}
    variety |= {"repeated": list(map(repeated, texts)), "batch": batch}
    for n in (1, 2):
        variety[f"batch_distinct_{n}"] = texts.groupby(batch).apply(distinct, n).loc[batch].to_numpy()
    return pd.DataFrame({"rouge_l": agreement} | variety)
