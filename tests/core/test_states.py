"""Hidden states in one file: each document's own, whole after any interruption, and never silently damaged."""

import time
from contextlib import ExitStack

import numpy as np
import pytest
import torch

from chameleon_lite import files, states
from chameleon_lite.backbone import load_backbone
from chameleon_lite.backbones import stored
from chameleon_lite.errors import RunFailed
from chameleon_lite.states import ScoredStates, hidden_states, place_of
from chameleon_lite.text import tokenise

pytestmark = pytest.mark.one_form
# A pass over the documents of conftest.py that takes its time over every piece and says so.
SLOW_PASS = """
import time
from pathlib import Path
import torch
from chameleon_lite import states
from chameleon_lite.text import Document
from chameleon_lite.text import tokenise
from chameleon_lite.backbone import load_backbone

texts = Path("texts").read_text().split("\\n")
tiny = load_backbone("tiny")
documents = [Document(str(i), text) for i, text in enumerate(texts)]
table = tokenise(documents, tiny.tokenizer, max_length=96, prefix_tokens=8, min_scored=4)
real = states.hidden_rows

def slow(backbone, table, rows):
    print("piece", flush=True)
    time.sleep(seconds)
    return real(backbone, table, rows)

states.hidden_rows, states.BATCH_TOKENS["cpu"] = slow, 300
states.hidden_states(tiny, table, torch.float32, Path("."), progress=False)
"""


@pytest.fixture
def small_pieces(monkeypatch):
    """Pieces of 300 tokens, and the numbers of documents that each computed one had."""
    computed, real = [], states.hidden_rows

    def counted(backbone, table, rows):
        computed.append(len(rows))
        return real(backbone, table, rows)

    monkeypatch.setitem(states.BATCH_TOKENS, "cpu", 300)
    monkeypatch.setattr(states, "hidden_rows", counted)
    return computed


@pytest.fixture
def slow_pass(some_documents, machine, tmp_path):
    """slow_pass(s, n): starts the slow pass into tmp_path in a process of its own, and waits for n pieces of it."""
    (tmp_path / "texts").write_text("\n".join(d.text for d in some_documents))
    log = tmp_path / "log"

    def start(seconds: float, pieces: int):
        process = machine.begin(f"seconds = {seconds}\n{SLOW_PASS}", tmp_path, log)
        stack.callback(process.kill)
        deadline = time.monotonic() + 60
        while not log.is_file() or log.read_text().count("piece\n") < pieces:
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.01)
        return process, log

    with ExitStack() as stack:
        yield start


def forgotten(monkeypatch):
    """What a new process does at first use: no file has been compared with its marks yet."""
    monkeypatch.setattr(stored, "_whole", {})


def marks_of(path):
    return np.load(path.with_suffix(".marks.npy"))


def alone(backbone, table, document):
    ids = table.ids[table.offsets[document] : table.offsets[document + 1]].astype(np.int64)
    with torch.no_grad():
        return backbone.hidden(torch.from_numpy(ids)[None], None)[0]


def test_a_states_place_is_its_tokens_place(tiny, tiny_table, tmp_path):
    found = hidden_states(tiny, tiny_table, torch.float32, tmp_path)
    assert found.shape == (len(tiny_table.ids), tiny.width) and found.dtype == np.float16
    for document in range(len(tiny_table)):
        own = torch.tensor(found[tiny_table.offsets[document] : tiny_table.offsets[document + 1]])
        assert torch.allclose(
            own.float(), alone(tiny, tiny_table, document), atol=2e-3, rtol=1e-3
        )  # fp16 storage


def test_scored_states_are_those_before_the_scored_tokens(tiny, tiny_table, tiny_states):
    for document in range(0, len(tiny_table), 7):
        h, target, row = tiny_states.batch(torch.tensor([document]))
        expected = alone(tiny, tiny_table, document)[tiny_table.prefix[document] - 1 : -1]
        assert torch.allclose(h.float(), expected, atol=2e-3, rtol=1e-3)
        ids = tiny_table.ids[tiny_table.offsets[document] : tiny_table.offsets[document + 1]]
        assert target.tolist() == ids[tiny_table.prefix[document] :].tolist()
        assert row.tolist() == [0] * len(target)


def test_a_batch_keeps_the_order_of_its_rows(tiny_states):
    rows = torch.tensor([5, 2, 9])
    h, target, row = tiny_states.batch(rows)
    each = [tiny_states.batch(r[None]) for r in rows]
    assert torch.equal(h, torch.cat([a[0] for a in each]))
    assert torch.equal(target, torch.cat([a[1] for a in each]))
    assert row.bincount().tolist() == [len(a[1]) for a in each]


def test_batches_are_the_same_from_the_device_from_the_file_and_as_pairs(
    tiny, tiny_table, tiny_states, tmp_path
):
    found = hidden_states(tiny, tiny_table, torch.float32, tmp_path)
    from_file = ScoredStates(tiny_table, found, budget=0)
    assert isinstance(from_file.states, np.memmap) and isinstance(tiny_states.states, torch.Tensor)
    h, target, _ = tiny_states.batch(torch.arange(len(tiny_table)))
    pairs = ScoredStates.of_pairs(h, target.numpy(), tiny_table.n_scored)
    rows = torch.tensor([11, 3, 40, 7])
    for other in (from_file, pairs):
        assert all(torch.equal(a, b) for a, b in zip(other.batch(rows), tiny_states.batch(rows)))
        assert torch.equal(other.target, target) and torch.equal(other.offsets, tiny_states.offsets)
        assert (len(other.counts), other.total) == (len(tiny_table), len(target))


def test_a_killed_pass_goes_on_where_it_was(tiny, tiny_table, tmp_path, slow_pass, small_pieces):
    whole = hidden_states(tiny, tiny_table, torch.float32, tmp_path / "whole", progress=False)
    pieces, path = len(small_pieces), place_of(tiny, tiny_table, torch.float32, "tokens", tmp_path)
    process, _ = slow_pass(0.3, 4)
    process.kill()
    done = np.count_nonzero(marks_of(path))
    assert 0 < done < len(tiny_table)
    small_pieces.clear()
    found = hidden_states(tiny, tiny_table, torch.float32, tmp_path, progress=False)
    # of a piece that the kill found half written, all documents are computed again: no other is
    again = sum(small_pieces) - (len(tiny_table) - done)
    assert pieces > 5 and 0 <= again < 5
    assert np.array_equal(found, whole)


def test_of_two_processes_one_computes_and_the_other_waits(
    tiny, tiny_table, tmp_path, slow_pass, small_pieces
):
    process, log = slow_pass(0.05, 1)
    found = hidden_states(tiny, tiny_table, torch.float32, tmp_path, progress=False)
    assert not small_pieces and process.wait() == 0 and log.read_text().count("piece\n") > 5
    assert np.count_nonzero(found.any(axis=1)) == len(found)


def test_an_error_keeps_the_pieces_before_it(tiny, tiny_table, tmp_path, small_pieces, monkeypatch):
    whole = hidden_states(tiny, tiny_table, torch.float32, tmp_path / "whole")
    pieces, counted = len(small_pieces), states.hidden_rows

    def dies_at_third(*given):
        if len(small_pieces) == pieces + 2:
            raise KeyboardInterrupt
        return counted(*given)

    monkeypatch.setattr(states, "hidden_rows", dies_at_third)
    with pytest.raises(KeyboardInterrupt):
        hidden_states(tiny, tiny_table, torch.float32, tmp_path / "again")
    monkeypatch.setattr(states, "hidden_rows", counted)
    found = hidden_states(tiny, tiny_table, torch.float32, tmp_path / "again")
    assert len(small_pieces) == 2 * pieces and np.array_equal(found, whole)


def flip_a_bit(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1 << 3
    path.write_bytes(data)


def zero_a_page(path):
    with open(path, "r+b") as file:
        file.seek(4_096)
        file.write(bytes(4_096))


def cut_short(path):
    path.write_bytes(path.read_bytes()[:-10])


def lose_the_header(path):
    path.write_bytes(bytes(64) + path.read_bytes()[64:])


@pytest.mark.parametrize("damage", [flip_a_bit, zero_a_page, cut_short, lose_the_header])
def test_a_damaged_file_is_named_and_made_again(
    tiny, tiny_table, tmp_path, small_pieces, monkeypatch, damage
):
    whole = np.array(hidden_states(tiny, tiny_table, torch.float32, tmp_path))
    path, pieces = place_of(tiny, tiny_table, torch.float32, "tokens", tmp_path), len(small_pieces)
    damage(path)
    forgotten(monkeypatch)
    with pytest.warns(UserWarning, match=f"{path.name} is damaged: .* documents are computed again"):
        found = hidden_states(tiny, tiny_table, torch.float32, tmp_path)
    assert np.array_equal(found, whole)
    again = len(small_pieces) - pieces
    assert again == 1 if damage is flip_a_bit else again >= 1
    forgotten(monkeypatch)
    hidden_states(tiny, tiny_table, torch.float32, tmp_path)  # a warning would be an error
    assert len(small_pieces) == pieces + again


@pytest.mark.parametrize(
    "damage", [cut_short, lose_the_header, lambda path: path.write_bytes(b""), flip_a_bit]
)
def test_damaged_marks_are_named_and_made_again(tiny, tiny_table, tmp_path, monkeypatch, damage):
    whole = np.array(hidden_states(tiny, tiny_table, torch.float32, tmp_path))
    path = place_of(tiny, tiny_table, torch.float32, "tokens", tmp_path)
    damage(path.with_suffix(".marks.npy"))
    forgotten(monkeypatch)
    with pytest.warns(UserWarning, match=f"{path.name} is damaged: .* documents are computed again"):
        found = hidden_states(tiny, tiny_table, torch.float32, tmp_path)
    assert np.array_equal(found, whole) and marks_of(path).all()


def test_states_without_their_marks_are_computed_again(tiny, tiny_table, tmp_path, small_pieces, monkeypatch):
    whole = np.array(hidden_states(tiny, tiny_table, torch.float32, tmp_path))
    pieces = len(small_pieces)
    place_of(tiny, tiny_table, torch.float32, "tokens", tmp_path).with_suffix(".marks.npy").unlink()
    forgotten(monkeypatch)
    assert np.array_equal(hidden_states(tiny, tiny_table, torch.float32, tmp_path), whole)
    assert len(small_pieces) == 2 * pieces


def test_a_process_compares_a_file_with_its_marks_once(tiny, tiny_table, tmp_path, monkeypatch):
    hidden_states(tiny, tiny_table, torch.float32, tmp_path)
    forgotten(monkeypatch)
    read, real = [], stored._sums
    monkeypatch.setattr(stored, "_sums", lambda path, *given: read.append(path) or real(path, *given))
    monkeypatch.setattr(states, "hidden_rows", None)  # nothing is computed
    for _ in range(3):
        hidden_states(tiny, tiny_table, torch.float32, tmp_path)
    assert len(read) == 1


def test_weights_tokens_and_arithmetic_have_files_of_their_own(tiny, tiny_table):
    llama = load_backbone("tiny-llama")
    few = tiny_table.take(np.arange(5))
    paths = {
        place_of(tiny, tiny_table, torch.float32, "tokens"),
        place_of(tiny, tiny_table, torch.bfloat16, "tokens"),
        place_of(tiny, few, torch.float32, "tokens"),
        place_of(llama, tiny_table, torch.float32, "tokens"),
        place_of(tiny, tiny_table, torch.float32, "padded"),
    }
    assert len(paths) == 5 and {p.parent for p in paths} == {files.home() / "states"}


def test_a_16_bit_pass_gives_the_weights_back(tiny, tiny_table, tmp_path):
    before = {k: v.clone() for k, v in tiny.lm.state_dict().items()}
    exact = hidden_states(tiny, tiny_table, torch.float32, tmp_path)
    found = hidden_states(tiny, tiny_table, torch.bfloat16, tmp_path)
    assert all(torch.equal(v, before[k]) for k, v in tiny.lm.state_dict().items())
    assert tiny.head.weight.dtype == torch.float32
    assert found.dtype == np.float16 and not np.array_equal(found, exact)


def test_states_that_are_not_finite_are_refused(tiny, tiny_table, tmp_path):
    class Broken:
        name, hash, width, lm, device = "broken", "x", tiny.width, tiny.lm, tiny.device

        @staticmethod
        def hidden(ids, mask):
            return torch.full((*ids.shape, tiny.width), float("nan"))

    with pytest.raises(RunFailed, match="not finite"):
        hidden_states(Broken, tiny_table, torch.float32, tmp_path)
    assert not marks_of(place_of(Broken, tiny_table, torch.float32, "tokens", tmp_path)).any()


def test_a_pass_in_16_bits_leaves_the_backbone_as_it_was(some_documents, tmp_path):
    """Rotary frequencies are no weights: rounded in the pass, they would stay rounded after it."""
    llama = load_backbone("tiny-llama")
    table = tokenise(some_documents, llama.tokenizer, max_length=96, prefix_tokens=8, min_scored=4)
    ids = torch.arange(80)[None]
    before = llama.lm(ids).logits
    hidden_states(llama, table, torch.bfloat16, tmp_path, progress=False)
    assert torch.equal(llama.lm(ids).logits, before)
