"""The public names as a program with types uses them: checked by `make types`, and run by test_public_types.py."""

from pathlib import Path
from typing import assert_type

import torch

from chameleon_lite import (
    Arrangement,
    Backbone,
    ChameleonLiteForCausalLM,
    Clustering,
    Condition,
    Document,
    HeadUpdate,
    HyperHead,
    TokenTable,
    arrange,
    fit_clusters,
    load_backbone,
    mean_embeddings,
    tokenise,
)


def update_of(texts: list[str], backbone_name: str) -> HeadUpdate:
    """The update that an untrained head writes for the mean of these texts."""
    backbone = assert_type(load_backbone(backbone_name), Backbone)
    documents = [Document(str(number), text) for number, text in enumerate(texts)]
    table = assert_type(tokenise(documents, backbone.tokenizer, prefix_tokens=8), TokenTable)
    vectors = assert_type(mean_embeddings(table, backbone.embedding), torch.Tensor)
    clusters = assert_type(fit_clusters(vectors, 2, seed=0), Clustering)
    order = arrange(len(vectors), clusters.labels, torch.Generator().manual_seed(0))
    assert_type(order, Arrangement)
    head = HyperHead(backbone.width, backbone.vocab).eval()
    return head.factors(Condition(vectors.mean(0, keepdim=True)))


def load(folder: Path) -> ChameleonLiteForCausalLM:
    """A saved adapter with its backbone."""
    model = ChameleonLiteForCausalLM.from_pretrained(folder)
    assert isinstance(model, ChameleonLiteForCausalLM)
    return model
