"""How alike Alpaca's conditioning vectors are: the mean cosine of all pairs, with and without padding."""

from torch import Tensor

from ..released_material import span_vectors
from .store import Proof
from .subject import Subject


def mean_cosine(x: Tensor) -> float:
    """Mean cosine over all pairs of different rows of x (N, C), rows of length 1, without the (N, N) matrix."""
    n = len(x)
    return float(((x.double().sum(0) ** 2).sum() - (x.double() ** 2).sum()) / (n * (n - 1)))


def prove(subject: Subject) -> Proof | None:
    """Both means of the instruction spans; None for a corpus without instructions."""
    if not subject.prompts:
        return None
    table, length = subject.material.tables["train"], subject.settings.tokens.max_length
    weight = subject.backbone.embedding.detach().cpu()
    spans = table.condition[:, 1] - table.condition[:, 0]
    numbers = {
        "padded_mean_cosine": mean_cosine(span_vectors(table, weight, length)),
        "unpadded_mean_cosine": mean_cosine(span_vectors(table, weight, None)),
        "padding_share_of_the_mean": 1 - float(spans.mean()) / length,
        "rows": float(len(table)),
    }
    return Proof(
        proof="instruction_vectors",
        title="The condition on Alpaca is nearly a constant",
        audit=(19, 25),
        where="the embedding step before k-means, the task embedding of the Alpaca script",
        shows=f"Two instructions' vectors have a mean cosine of {numbers['padded_mean_cosine']:.5f} with padding in "
        f"the mean and {numbers['unpadded_mean_cosine']:.2f} without.",
        numbers=numbers,
    )
