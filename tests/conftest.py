"""Fixtures of all rooms: a byte tokenizer, the tiny backbone with its states, small models of six architectures."""

import gc

import numpy as np
import pytest
import torch

from chameleon_lite import engine
from chameleon_lite.backbone import load_backbone
from chameleon_lite.backbones import tiny as tiny_models
from chameleon_lite.loss import HeadWeight
from chameleon_lite.states import ScoredStates, hidden_states
from chameleon_lite.text import Document, tokenise

from .machine import job_server, machine  # noqa: F401  (fixtures)

gc.disable()  # what is loaded and collected stays: to look through it again and again finds nothing


def pytest_collection_finish():
    gc.collect(), gc.freeze(), gc.enable()


class ByteTokenizer:
    """Byte b is token b; the smallest thing `tokenise` takes for a tokenizer. Pads with 0, an ordinary id."""

    pad_token_id = 0

    def __call__(self, texts: list[str], add_special_tokens: bool = False) -> dict[str, list[list[int]]]:
        return {"input_ids": [list(text.encode()) for text in texts]}


@pytest.fixture
def byte_tokenizer():
    return ByteTokenizer()


@pytest.fixture
def byte_table():
    """A table of texts, given directly: m = 2 prefix tokens, at least 1 scored."""

    def make(texts, **settings):
        settings = {"max_length": 64, "prefix_tokens": 2, "min_scored": 1} | settings
        documents = [Document(str(i), text, group=f"g{i % 2}") for i, text in enumerate(texts)]
        return tokenise(documents, ByteTokenizer(), **settings)

    return make


@pytest.fixture
def numbers():
    return np.random.default_rng(0)


COMMON = {"vocab_size": 257, "max_position_embeddings": 128, "bos_token_id": 256, "eos_token_id": 256}
LLAMA = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "initializer_range": 0.2,
} | COMMON
KINDS = {  # name -> configuration class, its settings, what the tokenizer's pad token is
    "gpt2-tied": (
        "GPT2Config",
        {
            "vocab_size": 257,
            "n_positions": 128,
            "n_embd": 16,
            "n_layer": 2,
            "n_head": 2,
            "initializer_range": 0.2,
            "bos_token_id": 256,
            "eos_token_id": 256,
        },
        "missing",
    ),
    "llama-untied": ("LlamaConfig", {"num_key_value_heads": 2, "tie_word_embeddings": False} | LLAMA, "eos"),
    "qwen2-tied": ("Qwen2Config", {"num_key_value_heads": 2, "tie_word_embeddings": True} | LLAMA, "zero"),
    "neox-untied": ("GPTNeoXConfig", LLAMA, "own"),
    "opt-projected": (
        "OPTConfig",
        {
            "hidden_size": 32,
            "word_embed_proj_dim": 16,
            "ffn_dim": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "init_std": 0.2,
            "pad_token_id": 0,
        }
        | COMMON,
        "own",
    ),
    "phi-bias": ("PhiConfig", LLAMA, "eos"),
}


def save_small(kind: str, folder, seed: int = 0):
    """A model of the kind with seeded random weights and the byte tokenizer, in a folder."""
    import transformers

    config_name, settings, pad = KINDS[kind]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        lm = transformers.AutoModelForCausalLM.from_config(getattr(transformers, config_name)(**settings))
        for name, value in lm.named_parameters():
            if name.endswith("bias"):  # zero by default: a forgotten bias would go unseen
                torch.nn.init.normal_(value, std=0.2)
    tokenizer = tiny_models.byte_tokenizer(128)
    pads = {
        "missing": None,
        "eos": tokenizer.eos_token,
        "zero": tokenizer.convert_ids_to_tokens(0),
        "own": tokenizer.convert_ids_to_tokens(1),
    }
    tokenizer.pad_token = pads[pad]
    lm.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def small_folder(tmp_path_factory):
    """kind -> folder, made on first use."""
    made = {}

    def get(kind: str, seed: int = 0):
        if (kind, seed) not in made:
            made[kind, seed] = save_small(kind, tmp_path_factory.mktemp(kind), seed)
        return made[kind, seed]

    return get


@pytest.fixture
def small_backbone(small_folder):
    return lambda kind, seed=0: load_backbone(str(small_folder(kind, seed)))


@pytest.fixture
def small_kinds():
    return list(KINDS)


def _adapted(backbone, clusters=3, **settings):
    """An adapter whose update is far from zero, with centroids."""
    from chameleon_lite.chameleon import ChameleonLiteForCausalLM

    torch.manual_seed(1)
    centroids = torch.nn.functional.normalize(torch.randn(clusters, backbone.width), dim=1)
    model = ChameleonLiteForCausalLM.from_backbone(
        backbone, rank=2, dropout=0.0, centroids=centroids, **settings
    )
    for parameter in model.head.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    torch.nn.init.normal_(
        model.head.last.bias, std=0.1
    )  # so that the condition matters more than the constant
    return model.eval()


def _batch(backbone, texts=("a short one", "a second prompt, quite a bit longer", "three")):
    """Left-padded ids and mask, as generation wants them."""
    rows = [backbone.tokenizer(t, add_special_tokens=False)["input_ids"] for t in texts]
    longest = max(map(len, rows))
    ids = torch.tensor([[backbone.pad_id] * (longest - len(r)) + r for r in rows])
    mask = torch.tensor([[0] * (longest - len(r)) + [1] * len(r) for r in rows])
    return ids, mask


def _new_tokens(model, ids, mask, **options):
    options = {"max_new_tokens": 8, "do_sample": False} | options
    return model.generate(input_ids=ids, attention_mask=mask, **options)[:, ids.shape[1] :]


@pytest.fixture
def adapted():
    return _adapted


@pytest.fixture
def batch():
    return _batch


@pytest.fixture
def new_tokens():
    return _new_tokens


def pytest_generate_tests(metafunc):
    """A test that takes `architecture` runs once for every architecture."""
    if "architecture" in metafunc.fixturenames:
        metafunc.parametrize("architecture", list(KINDS))


@pytest.fixture(autouse=True)
def checked_one_form(request, monkeypatch):
    """A test that is marked so is as good as run on the plain engine: no fast form serves it by default."""
    if request.node.get_closest_marker("one_form"):
        real = engine.fast

        def fast(door, worth=True):
            found = real(door, worth)
            assert found is None or engine._chosen, f"takes the fast {door}: it is not of one_form"
            return found

        monkeypatch.setattr(engine, "fast", fast)


WORDS = "the mean of a batch tells what kind of text it holds and little else than that".split()


@pytest.fixture(scope="session")
def tiny():
    return load_backbone("tiny")


@pytest.fixture(scope="session")
def some_documents():
    generator = np.random.default_rng(0)
    texts = [" ".join(generator.choice(WORDS, size=generator.integers(8, 20))) for _ in range(60)]
    return [Document(str(i), text, group=f"g{i % 3}") for i, text in enumerate(texts)]


@pytest.fixture(scope="session")
def tiny_table(tiny, some_documents):
    return tokenise(some_documents, tiny.tokenizer, max_length=96, prefix_tokens=8, min_scored=4)


@pytest.fixture(scope="session")
def tiny_states(tiny, tiny_table, tmp_path_factory):
    states = hidden_states(tiny, tiny_table, torch.float32, tmp_path_factory.mktemp("states"))
    return ScoredStates(tiny_table, states)


@pytest.fixture(scope="session")
def tiny_weight(tiny):
    return HeadWeight(tiny.head.weight, tiny.head.bias, dtype=torch.float32)


MANNERS = (
    "the mean of a batch tells what kind of text it holds and little else than that",
    "return x if x is not None else default_value(x, axis=0, keepdims=True)",
    "1.25 0.75 3.5 8.125 0.0625 17.0 4.5 2.25 1.125 9.0 6.5 3.25 1.75 0.5",
)


@pytest.fixture(scope="session")
def adapter():
    """A small adapter on `tiny` with centroids and an update far from zero."""
    from chameleon_lite.chameleon import ChameleonLiteForCausalLM

    backbone = load_backbone("tiny")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        rows = [torch.tensor(backbone.tokenizer(t)["input_ids"]) for t in MANNERS]
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
def some_texts():
    """n texts in three manners, all different."""

    def make(n: int) -> list[str]:
        return [f"{MANNERS[i % 3][i % 5 : 35 + i % 31]} number {i}" for i in range(n)]

    return make
