"""However many rows pass, `adapt`, with learning and without, holds no more than a batch and its state."""

import ctypes
import gc
import json
import os
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from chameleon_lite.app.learn import LearningStream
from chameleon_lite.app.learned import learn_file
from chameleon_lite.app.score import Adapter
from chameleon_lite.app.stream import adapt_file
from chameleon_lite.backbone import load_backbone
from chameleon_lite.backbones.formats import words_cached
from chameleon_lite.streams.memory import LearnSettings

WORDS = "the mean of a batch tells what kind of text it holds and little else".split()
BATCH, FEW, MANY = 100, 500, 1_500
BYTES_PER_ROW = 100  # that Python may hold more of: the result of a row alone takes some 400
NATIVE_MEGABYTES = (
    20  # by which the process may grow over 1,000 rows; products compiled for each shape took 138 over 2,000
)


def written(path, count, longest=12):
    """Rows of few different texts, so that a tokenizer's own cache is full soon; batches differ."""
    numbers = np.random.default_rng(0)
    texts = [" ".join(numbers.choice(WORDS, size=numbers.integers(7, longest))) for _ in range(BATCH)]
    path.write_text("".join(json.dumps({"text": texts[i]}) + "\n" for i in numbers.integers(0, BATCH, count)))
    return path


@pytest.mark.parametrize("way", ["learned", "adapted"])
def test_nothing_of_a_row_that_has_passed_is_held(tiny, adapter, tmp_path, monkeypatch, way):
    kind = LearningStream if way == "learned" else Adapter
    batch, passed, held = kind.__call__, 0, {}

    def watched(self, window):
        nonlocal passed
        out = batch(self, window)
        passed += len(window)
        if passed in (FEW, MANY):
            gc.collect()
            held[passed] = tracemalloc.get_traced_memory()[0]
        return out

    monkeypatch.setattr(kind, "__call__", watched)
    source, out = written(tmp_path / "in.jsonl", MANY), tmp_path / "out"
    tracemalloc.start()
    if way == "learned":
        how = {"memory": "cluster", "clusters": 3, "settings": LearnSettings(batch_rows=BATCH)}
        learn_file(tiny, source, out, progress=False, **how)
    else:
        adapt_file(adapter, source, out, window=BATCH, progress=False)
    tracemalloc.stop()
    assert held[MANY] - held[FEW] < BYTES_PER_ROW * (MANY - FEW)


GROWTH = """
import os, sys
from chameleon_lite.app import learn
from chameleon_lite.app.learned import learn_file
batch, sizes, rows = learn.LearningStream.__call__, [], 0
def watched(self, window):
    global rows
    out, rows = batch(self, window), rows + len(window)
    if rows in (480, 1_472):
        with open("/proc/self/statm") as file:
            sizes.append(int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE"))
    return out
learn.LearningStream.__call__ = watched
learn_file("tiny", sys.argv[1], sys.argv[2], device="cpu", progress=False)
print((sizes[1] - sizes[0]) / 1e6)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="reads Linux's own count of pages")
def test_the_process_does_not_grow_with_the_rows(tmp_path):
    source = written(tmp_path / "in.jsonl", 1_500, longest=40)
    words = [sys.executable, "-c", GROWTH, str(source), str(tmp_path / "out")]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert float(done.stdout) < NATIVE_MEGABYTES


class Allocated(ctypes.Structure):
    """glibc's mallinfo2: the bytes in use in all its arenas, without those that are kept free for later."""

    names = "arena ordblks smblks hblks hblkhd usmblks fsmblks in_use free keepcost"
    _fields_ = [(name, ctypes.c_size_t) for name in names.split()]


COUNTS = getattr(ctypes.CDLL(None), "mallinfo2", None) if os.name == "posix" else None
TEXTS, LETTERS = 2_000, [*"abcdefghijklmnopqrstuvwxyz0123456789▁ "]
HELD = 1_000_000  # bytes of so many texts; results that were kept took from 9 to 16 million


def bytes_held(tokenizer):
    """How many bytes more are in use after 2,000 different texts of 150 letters than after the first 200."""
    texts = [f"{number:04d} {'the mean of a batch ' * 10}"[:150] for number in range(TEXTS)]
    COUNTS.restype, sizes = Allocated, []
    for few in (texts[:200], texts[200:]):
        tokenizer(few, add_special_tokens=False)
        gc.collect()
        sizes.append(COUNTS().in_use)
    return sizes[1] - sizes[0]


@pytest.mark.skipif(COUNTS is None, reason="reads glibc's own count of bytes, from 2.33 on")
def test_the_tiny_backbone_holds_no_text_that_has_passed():
    assert bytes_held(load_backbone("tiny").tokenizer) < HELD


@pytest.mark.skipif(COUNTS is None, reason="reads glibc's own count of bytes, from 2.33 on")
@pytest.mark.parametrize("split", [None, pre_tokenizers.Metaspace(split=False)], ids=["no", "marks"])
@pytest.mark.parametrize("kind", ["BPE", "Unigram"])
def test_a_tokenizer_that_splits_no_text_holds_none(kind, split):
    vocab = {"vocab": {letter: n for n, letter in enumerate(LETTERS)}, "merges": []}
    core = Tokenizer(models.BPE(**vocab) if kind == "BPE" else models.Unigram([(x, -1.0) for x in LETTERS]))
    if split is not None:
        core.pre_tokenizer = split
    assert bytes_held(words_cached(PreTrainedTokenizerFast(tokenizer_object=core))) < HELD
