"""One small adapter on `tiny` with centroids and an update far from zero, for every test of the room."""

import numpy as np
import pytest
import torch

from chameleon_lite.backbone import load_backbone

TEXTS = (
    "the mean of a batch tells what kind of text it holds and little else than that",
    "return x if x is not None else default_value(x, axis=0, keepdims=True)",
    "1.25 0.75 3.5 8.125 0.0625 17.0 4.5 2.25 1.125 9.0 6.5 3.25 1.75 0.5",
)


@pytest.fixture(scope="session")
def adapter():
    from chameleon_lite.chameleon import ChameleonLiteForCausalLM

    backbone = load_backbone("tiny")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        rows = [torch.tensor(backbone.tokenizer(t)["input_ids"]) for t in TEXTS]
        centroids = torch.stack(
            [torch.nn.functional.normalize(backbone.embedding[r].mean(0), dim=0) for r in rows]
        )
        model = ChameleonLiteForCausalLM.from_backbone(
            backbone,
            rank=2,
            dropout=0.0,
            centroids=centroids,
            prompts={"max_length": 128, "prefix_tokens": 16, "min_scored": 8, "condition_on": "prompt"},
        )
        for layer, spread in ((model.head.net[0], 3.0), (model.head.net[3], 0.5), (model.head.last, 0.1)):
            torch.nn.init.normal_(layer.weight, std=spread)
            torch.nn.init.normal_(layer.bias, std=0.05)
    return model.eval()


@pytest.fixture(scope="session")
def adapter_folder(adapter, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapter")
    adapter.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def some_texts():
    """n texts in three manners, all different."""

    def make(n: int) -> list[str]:
        return [f"{TEXTS[i % 3][i % 5 : 35 + i % 31]} number {i}" for i in range(n)]

    return make


@pytest.fixture(scope="session")
def apart():
    """Calls rows_of(rows) for the rows of one group after the other; the results are in the rows' order."""

    def call(rows_of, group: torch.Tensor) -> list:
        results: list = [None] * len(group)
        for g in torch.unique(group):
            rows = torch.nonzero(group == g).flatten()
            for i, value in zip(rows.tolist(), rows_of(rows)):
                results[i] = value
        return results

    return call


WORDS = {
    "prose": "the mean of a batch tells what kind of text it holds and little else".split(),
    "code": "return x if x is None else max(axis=0) def f(self): import numpy as np".split(),
}


@pytest.fixture(scope="session")
def two_kinds():
    """n made-up texts, prose and code by turns: what a cluster tells is worth something."""

    def make(n: int, seed: int = 0) -> list[str]:
        generator = np.random.default_rng(seed)
        return [" ".join(generator.choice(WORDS[("prose", "code")[i % 2]], size=12)) for i in range(n)]

    return make
