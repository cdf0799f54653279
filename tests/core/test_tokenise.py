"""Tables of chunks of documents against single calls of the library, in every field."""

from dataclasses import fields

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from chameleon_lite import text
from chameleon_lite.errors import UserError
from chameleon_lite.text import SHORT, Document, tokenise

END = "<|endoftext|>"
WORDS = ["the naïve café ", "  over there", "日本語", "🙂🙂", END, "AbC dEf ", "\n", "", " "]
TEXTS = st.lists(st.sampled_from(WORDS), max_size=5).map("".join)
DOCUMENTS = st.lists(
    st.tuples(TEXTS, st.one_of(st.just(""), TEXTS), st.sampled_from(["", "café", "lang"])), max_size=9
)


def byte_level():
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.post_processor = processors.ByteLevel(trim_offsets=True)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=[END], initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(WORDS * 3, trainer)
    return backend


def words_in_lower_case():
    """Drops blanks, folds case and accents, and has a beginning that it would set before every text."""
    pieces = ["[UNK]", "[BOS]", "the", "naive", "cafe", "over", "there", "abc", "d", "##ef"]
    backend = Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]"))
    backend.normalizer = normalizers.Sequence(
        [normalizers.NFD(), normalizers.StripAccents(), normalizers.Lowercase()]
    )
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing("[BOS] $A", None, [("[BOS]", 1)])
    return backend


def fast(backend=byte_level, kind=PreTrainedTokenizerFast, **words):
    return kind(tokenizer_object=backend(), eos_token=END, pad_token=END, **words)


class Own(PreTrainedTokenizerFast):
    """Prepares its texts in its own way."""

    def _encode_plus(self, text, *args, **words):
        return super()._encode_plus([t.upper() for t in text], *args, **words)


def plain(texts, add_special_tokens=False):
    return {"input_ids": [list(text.encode()) for text in texts]}


def library(tokenizer, text):
    """Ids and each token's end by a call of the library for one text alone."""
    found = tokenizer([text], add_special_tokens=False, return_offsets_mapping=True)
    return found["input_ids"][0], [stop for _, stop in found["offset_mapping"][0]]


def expected(documents, tokenizer, max_length, prefix_tokens, min_scored, condition_on):
    """What `tokenise` promises, document by document: rows (ids, prefix, span, bytes, name), reasons."""
    rows, dropped = [], {SHORT: 0, "truncated": 0, "prompt truncated": 0}
    for d in documents:
        prompt, (text, ends) = library(tokenizer, d.prompt)[0], library(tokenizer, d.text)
        cut = max(0, len(prompt) - (max_length - min_scored))
        ids = prompt[cut:] + text
        prefix = len(prompt) - cut or prefix_tokens
        if min(len(ids), max_length) - prefix < min_scored:
            dropped[SHORT] += 1
            continue
        dropped["truncated"] += len(ids) > max_length
        dropped["prompt truncated"] += cut > 0
        kept, skipped = max_length - (len(prompt) - cut), 0 if prompt else prefix
        stop = ends[:kept][-1] if ends[:kept] else 0
        size = len(d.text[ends[skipped - 1] if skipped else 0 : stop].encode())
        span, at = [0, prefix], d.prompt.find(d.instruction) if d.instruction else -1
        if condition_on == "instruction" and at >= 0:
            found = [len(library(tokenizer, d.prompt[:n])[0]) - cut for n in (at, at + len(d.instruction))]
            found = [min(max(0, n), prefix) for n in found]
            span = found if found[0] < found[1] else span
        rows.append((ids[:max_length], prefix, span, size, d.id))
    return rows, dropped


def as_rows(table):
    at = zip(table.offsets[:-1], table.offsets[1:])
    numbers = (table.prefix.tolist(), table.condition.tolist(), table.scored_bytes.tolist(), table.names)
    return list(zip([table.ids[a:b].tolist() for a, b in at], *numbers))


def check(made, tokenizer, **words):
    documents = [Document(str(i), text, f"g{i}", *more) for i, (text, *more) in enumerate(made)]
    rows, dropped = expected(documents, tokenizer, **words)
    if not rows:
        with pytest.raises(UserError, match=f"no document of {len(documents)}"):
            tokenise(documents, tokenizer, **words)
        return
    table = tokenise(documents, tokenizer, **words)
    assert as_rows(table) == rows and table.dropped == dropped
    assert table.groups == tuple(f"g{name}" for name in table.names)
    types = [getattr(table, name).dtype for name in ("ids", "offsets", "prefix", "condition", "scored_bytes")]
    assert types == [np.int32, np.int64, np.int32, np.int32, np.int64]


KINDS = {
    "bytes": fast(),
    "special tokens split": fast(split_special_tokens=True),
    "words": fast(words_in_lower_case),
    "own way": fast(kind=Own),
}


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40, deadline=None)
@given(
    DOCUMENTS,
    st.integers(9, 14),
    st.integers(1, 4),
    st.integers(0, 4),
    st.sampled_from(["prompt", "instruction"]),
)
def test_every_field_is_what_the_librarys_call_gives(kind, made, length, prefix, scored, condition):
    words = dict(max_length=length, prefix_tokens=prefix, min_scored=scored, condition_on=condition)
    check(made, KINDS[kind], **words)


def test_chunks_change_nothing(monkeypatch):
    some = [Document(str(i), WORDS[i % 9] * i, prompt=WORDS[i % 5], instruction="café") for i in range(23)]
    for tokenizer in (*KINDS.values(), plain):
        whole = tokenise(
            some, tokenizer, max_length=20, prefix_tokens=1, min_scored=1, condition_on="instruction"
        )
        with monkeypatch.context() as patch:
            patch.setattr(text, "CHUNK", 3)
            parts = tokenise(
                some, tokenizer, max_length=20, prefix_tokens=1, min_scored=1, condition_on="instruction"
            )
        for name in (f.name for f in fields(whole)):
            assert np.array_equal(getattr(whole, name), getattr(parts, name)), name
        assert whole.hash == parts.hash


def test_settings_left_from_an_earlier_call_do_not_count():
    documents = [Document("a", "the naïve café"), Document("b", "over there " * 9), Document("c", END)]
    tokenizer = fast()
    tokenizer(["a"], padding="max_length", truncation=True, max_length=6, stride=2, pad_to_multiple_of=2)
    tokenizer.backend_tokenizer.encode_special_tokens = True
    words = dict(max_length=256, prefix_tokens=1, min_scored=0)
    assert as_rows(tokenise(documents, tokenizer, **words)) == as_rows(tokenise(documents, fast(), **words))


def test_bytes_without_offsets_are_shared_out_evenly():
    documents = [Document("0", "naïve"), Document("1", "ab" * 5)]  # 6 bytes and tokens; 10
    table = tokenise(documents, plain, max_length=8, prefix_tokens=2, min_scored=1)
    assert table.scored_bytes.tolist() == [4, 6]
