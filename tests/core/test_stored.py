"""Rows that several threads write and sum: whole where all went well, an error where one did not."""

import os
from contextlib import nullcontext

import numpy as np
import pytest
import torch

from chameleon_lite import states
from chameleon_lite.backbones import stored as module
from chameleon_lite.backbones.stored import stored

SIZES = np.array([3, 0, 5, 1, 7, 2, 4, 4, 1, 6, 2, 3])  # more documents than threads, and one without rows
OFFSETS = np.concatenate([[0], np.cumsum(SIZES)])
ROWS = np.random.default_rng(0).normal(size=(OFFSETS[-1], 5)).astype(np.float16)
PIECES = [np.array([4, 0, 1, 11, 9, 8, 7, 3, 2]), np.array([6, 5, 10])]


def rows_of(documents):
    return np.concatenate([ROWS[OFFSETS[n] : OFFSETS[n + 1]] for n in documents])


def test_every_documents_rows_lie_at_their_place_and_are_not_computed_again(tmp_path):
    path, computed = tmp_path / "a.npy", []

    def compute(documents):
        computed.append(len(documents))
        return rows_of(documents)

    for _ in range(2):
        assert np.array_equal(stored(path, OFFSETS, 5, PIECES, compute, nullcontext(), False), ROWS)
        path.touch()  # compared with its marks again
    assert computed == [9, 3]


def test_one_flipped_bit_is_named_and_its_piece_computed_again(tmp_path):
    path = tmp_path / "a.npy"
    stored(path, OFFSETS, 5, PIECES, rows_of, nullcontext(), False)
    content = bytearray(path.read_bytes())
    content[-10] ^= 4  # in document 11
    path.write_bytes(content)
    with pytest.warns(UserWarning, match="damaged: 1 documents are computed again"):
        found = stored(path, OFFSETS, 5, PIECES, rows_of, nullcontext(), False)
    assert np.array_equal(found, ROWS)


def test_an_error_of_a_thread_is_raised(tmp_path):
    path = tmp_path / "a.npy"

    def compute(documents):
        path.unlink()  # somebody clears the cache
        return rows_of(documents)

    with pytest.raises(FileNotFoundError):
        stored(path, OFFSETS, 5, PIECES[:1], compute, nullcontext(), False)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_file_in_a_folder_that_cannot_be_written_is_read(tmp_path, monkeypatch):
    path = tmp_path / "a.npy"
    stored(path, OFFSETS, 5, PIECES, rows_of, nullcontext(), False)
    for file in tmp_path.iterdir():
        file.chmod(0o444)
    tmp_path.chmod(0o555)
    monkeypatch.setattr(module, "_whole", {})  # as in a new process
    try:
        assert np.array_equal(stored(path, OFFSETS, 5, PIECES, None, nullcontext(), False), ROWS)
    finally:
        tmp_path.chmod(0o755)


def test_a_piece_is_one_batch_and_is_written_before_the_second_one_after_it(
    tiny, tiny_table, tmp_path, monkeypatch
):
    path, real = states.place_of(tiny, tiny_table, torch.float32, "tokens", tmp_path), states.hidden_rows
    pieces, batches, written, hidden = [], [], [], type(tiny).hidden

    def piece(backbone, table, rows):
        if len(pieces) > 1:  # the last piece may still be being written, the one before it may not
            marks = np.load(path.with_suffix(".marks.npy"))
            written.append(np.count_nonzero(marks) >= sum(pieces[:-1]))
        pieces.append(len(rows))
        return real(backbone, table, rows)

    def batch(backbone, ids, mask):
        batches.append(len(ids))
        return hidden(backbone, ids, mask)

    monkeypatch.setitem(states.BATCH_TOKENS, "cpu", 300)
    monkeypatch.setattr(states, "hidden_rows", piece)
    monkeypatch.setattr(type(tiny), "hidden", batch)
    states.hidden_states(tiny, tiny_table, torch.float32, tmp_path, progress=False)
    assert batches == pieces and len(batches) > 5 and written and all(written)
