import pytest
import torch

from chameleon_bench.bench import Bench


@pytest.fixture
def small_bench():
    """The quick sizes on the tiny backbone: every row's code, none of its time."""
    return Bench(torch.device("cpu"), quick=True, model="tiny")
