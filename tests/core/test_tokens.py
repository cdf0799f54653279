import numpy as np
import pytest

from chameleon_lite.errors import UserError
from chameleon_lite.text import SHORT, Document, tokenise


def decoded(table, n):
    return bytes(table.ids[table.offsets[n] : table.offsets[n + 1]].tolist()).decode()


def test_documents_lie_flat_one_after_another(byte_table):
    table = byte_table(["abcd", "efghij"])
    assert bytes(table.ids.tolist()) == b"abcdefghij"
    assert table.offsets.tolist() == [0, 4, 10] and table.lengths.tolist() == [4, 6]
    assert table.prefix.tolist() == [2, 2] and table.n_scored.tolist() == [2, 4]
    assert table.condition.tolist() == [[0, 2], [0, 2]]
    assert table.scored_bytes.tolist() == [2, 4]
    assert table.names == ("0", "1") and table.groups == ("g0", "g1") and len(table) == 2
    assert (table.ids.dtype, table.offsets.dtype, table.prefix.dtype) == (np.int32, np.int64, np.int32)


def test_targets_are_shifted_and_skip_the_prefix(byte_table):
    position, target, document = byte_table(["abcd", "efg"]).targets()
    assert position.tolist() == [1, 2, 5]  # the states at b, c and f
    assert bytes(target.tolist()) == b"cdg"
    assert document.tolist() == [0, 0, 1]


def test_token_id_zero_counts(byte_table):
    table = byte_table(["a\0\0\0"])
    assert table.n_scored.tolist() == [2] and table.targets()[1].tolist() == [0, 0]
    ids, mask = table.padded([0], length=6)
    assert ids.tolist() == [[97, 0, 0, 0, 0, 0]]
    assert mask.tolist() == [[True] * 4 + [False] * 2]  # the mask, not the id, says what is padding


def test_padded_pads_to_the_longest_of_the_rows(byte_table):
    table = byte_table(["abcd", "efghij", "klm"])
    ids, mask = table.padded([2, 0])
    assert ids.tolist() == [[107, 108, 109, 0], [97, 98, 99, 100]] and mask.sum(1).tolist() == [3, 4]
    assert table.padded([1], length=2)[0].tolist() == [[101, 102]]


def test_take_is_the_same_as_tokenising_these_documents(byte_table):
    taken, direct = byte_table(["abcd", "efghij", "klm"]).take([2, 0]), byte_table(["klm", "abcd"])
    assert taken.ids.tolist() == direct.ids.tolist() and taken.offsets.tolist() == direct.offsets.tolist()
    assert taken.names == ("2", "0")


def test_hash_sees_ids_and_prefix(byte_table):
    same = byte_table(["abcd"]).hash
    assert same == byte_table(["abcd"]).hash
    assert same != byte_table(["abce"]).hash and same != byte_table(["abcd"], prefix_tokens=1).hash


def test_short_documents_are_dropped_and_counted(byte_table):
    table = byte_table(["ab", "abcd", "", "a" * 99])
    assert table.names == ("1", "3")
    assert table.dropped == {SHORT: 2, "truncated": 1, "prompt truncated": 0}
    assert table.lengths.tolist() == [4, 64]


def test_nothing_left_is_an_error(byte_table):
    with pytest.raises(UserError, match="no document of 2 has 2 prefix"):
        byte_table(["a", "ab"])


@pytest.mark.parametrize(
    "settings, message",
    [
        (dict(prefix_tokens=0), "prefix_tokens"),
        (dict(max_length=2), "has no room"),
        (dict(condition_on="output"), "condition_on"),
    ],
)
def test_settings_that_cannot_be_met(byte_table, settings, message):
    with pytest.raises(UserError, match=message):
        byte_table(["abcd"], **settings)


def one(prompt, text, tokenizer, **settings):
    document = Document("x", text, prompt=prompt, instruction="add")
    return tokenise(
        [document], tokenizer, **{"max_length": 10, "prefix_tokens": 2, "min_scored": 3} | settings
    )


def test_the_prompt_is_the_prefix(byte_tokenizer):
    table = one("> add: ", "abc", byte_tokenizer)
    assert decoded(table, 0) == "> add: abc"
    assert (
        table.prefix.tolist() == [7] and table.n_scored.tolist() == [3] and table.scored_bytes.tolist() == [3]
    )
    assert table.condition.tolist() == [[0, 7]]


def test_the_condition_may_read_the_instruction_alone(byte_tokenizer):
    assert one("> add: ", "abc", byte_tokenizer, condition_on="instruction").condition.tolist() == [[2, 5]]


def test_a_long_prompt_loses_its_start(byte_tokenizer):
    table = one("0123> add: ", "abcde", byte_tokenizer, condition_on="instruction")
    assert decoded(table, 0) == "> add: abc"
    assert table.condition.tolist() == [[2, 5]]
    assert table.dropped == {SHORT: 0, "truncated": 1, "prompt truncated": 1}


def test_an_instruction_cut_away_leaves_the_whole_prefix(byte_tokenizer):
    table = one("add 0123456789", "abc", byte_tokenizer, condition_on="instruction")
    assert decoded(table, 0) == "3456789abc" and table.condition.tolist() == [[0, 7]]


def test_short_responses_are_dropped_however_long_the_prompt(byte_tokenizer):
    with pytest.raises(UserError, match="no document"):
        one("a long prompt", "ab", byte_tokenizer)


def test_a_fast_tokenizer_counts_bytes_and_spans_exactly():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast = PreTrainedTokenizerFast(tokenizer_object=backend)
    documents = [
        Document("a", "naïve café, twice"),
        Document("b", "plain"),
        Document("c", "né", prompt="où: "),
    ]
    table = tokenise(documents, fast, max_length=12, prefix_tokens=2, min_scored=1)
    assert table.lengths.tolist() == [12, 5, 8]  # one token a byte
    assert table.scored_bytes.tolist() == [10, 3, 3] == table.n_scored.tolist()
