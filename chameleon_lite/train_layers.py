"""LoRA in the layers, trained together with a head: hidden states change with the factors and cannot be cached.

    rows of a step ─ pieces ─ backbone with LoRA ─▶ h ─ head ─▶ nats ─ gradients add up ─▶ AdamW

Every step runs the backbone forwards and backwards, and every reading forwards. Memory is the activations of one
piece: the rows of a step go through piece by piece, which changes no gradient.
"""

import copy
import inspect
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from .backbone import Backbone
from .batches import Arrangement
from .conditions import Source
from .fast.packing import first_fit, packed, sees
from .fast.recorded_layers import Layers, RecordedLayers, Run, recorded
from .heads import Head, HeadUpdate
from .lora import load_lora_state, lora_parameters, lora_state, without_lora
from .loss import HeadWeight, head_losses, next_token, pick_next_token, token_losses
from .processes import Processes
from .settings import TrainSettings
from .states import sent
from .text import TokenTable, by_length
from .train import Orders, _bar, average

ROW_LENGTH = (
    256  # tokens of a packed row, where no document is longer: a longer one costs more attention, for nothing
)
ROW_MULTIPLE = 16  # attention with a mask is fastest on a GPU where the mask's rows are aligned


@dataclass(frozen=True, eq=False)
class Piece:
    """D documents in B rows of T tokens and their M scored pairs, on the layers' device."""

    documents: Tensor  # (D,) on the host: places in the rows of the step
    ids: Tensor  # (B, T) int64
    position: Tensor | None  # (B, T) int64; None: one document a row, from the row's start
    mask: Tensor  # (B, 1, T, T) who sees whom, or (B, T) real tokens
    state: Tensor  # (M,) flat place in B · T of the state before each scored token
    target: Tensor  # (M,)
    owner: Tensor  # (M,) place in `documents`


def row_length(longest: int, budget: int) -> int:
    """Tokens of a packed row: the longest document's if that is within the budget, and not fewer than ROW_LENGTH."""
    return max(ROW_LENGTH, min(_aligned(longest), budget // ROW_MULTIPLE * ROW_MULTIPLE))


def packed_pieces(
    table: TokenTable, rows: Tensor, length: int, budget: int, device: torch.device, n_rows: int | None = None
) -> Iterator[Piece]:
    """Documents rows (B,) in packed rows of `length`, at most `budget` tokens or one row a piece.

    `n_rows`: all pieces have as many rows, some of them empty. Documents longer than `length` come last, in pieces
    of longer rows.
    """
    lengths = table.lengths[rows.numpy()]
    short = lengths <= length
    longer = _aligned(int(lengths.max(initial=1)))
    for chosen, t, size in ((short, length, n_rows), (~short, longer, None)):
        places = np.flatnonzero(chosen)
        found = first_fit(lengths[places], t)
        at_once = size or max(1, budget // t)
        for low in range(0, len(found), at_once):
            own = [places[row] for row in found[low : low + at_once]]
            yield _packed_piece(table, rows.numpy(), own, t, size, device)


def padded_pieces(table: TokenTable, rows: Tensor, budget: int, device: torch.device) -> Iterator[Piece]:
    """Documents rows (B,) by length, one a row, in pieces of at most `budget` padded tokens or one document."""
    for places in by_length(table.lengths[rows.numpy()], budget):
        documents = rows.numpy()[places]
        ids, mask = table.padded(documents)
        row, column, target = pick_next_token(ids, mask, torch.from_numpy(table.prefix[documents]).long())
        state = row * ids.shape[1] + column
        yield Piece(
            torch.from_numpy(places),
            sent(ids, device),
            None,
            sent(mask, device),
            *sent(torch.stack([state, target, row]), device),
        )


@torch.no_grad()
def takes_packed(backbone: Backbone, longest: int) -> bool:
    """Whether the backbone's states of packed documents of up to `longest` tokens are those of each alone; LoRA is off.

    Asked at that length, since a layer's own sliding window shows in a document only that is longer.
    """
    if "position_ids" not in inspect.signature(backbone.body.forward).parameters:
        return False
    vocab, device, half = backbone.embedding.shape[0], backbone.device, longest // 2
    ids = torch.arange(2 * longest, device=device).view(2, longest) * 7_919 % vocab  # (2, T)
    document = torch.zeros_like(ids)
    document[1, half:] = 1  # the second row holds two
    position = torch.arange(longest, device=device) - half * document
    real = torch.ones_like(ids, dtype=torch.bool)
    with without_lora(backbone):
        alone = backbone.hidden(ids, real).float()  # (2, T, C)
        alone[1, half:] = backbone.hidden(ids[1:, half:], real[1:, half:])[0].float()
        try:
            gap = (backbone.hidden(ids, sees(document), position).float() - alone).norm() / alone.norm()
        except Exception:  # whatever a model raises that reads masks in another way
            return False
    return bool(gap < math.sqrt(torch.finfo(backbone.head.weight.dtype).eps))


def _packed_piece(
    table: TokenTable,
    rows: np.ndarray,
    own: list[np.ndarray],
    length: int,
    n_rows: int | None,
    device: torch.device,
) -> Piece:
    """Packed rows of places within `rows` as a piece; two copies to the device, whatever they hold."""
    if n_rows is None:  # no shape is asked for: not longer than the fullest row
        length = _aligned(max(int(table.lengths[rows[row]].sum()) for row in own))
    found = packed(table, [rows[row] for row in own], length, n_rows)
    ids, position, document = sent(torch.stack([found.ids, found.position, found.document]), device)
    pairs = sent(torch.stack([found.state, found.target, found.owner]), device)
    return Piece(torch.from_numpy(np.concatenate(own)), ids, position, sees(document), *pairs)


def _aligned(length: int) -> int:
    return -(-length // ROW_MULTIPLE) * ROW_MULTIPLE


# Tokens that go through the backbone at once. Training keeps every layer's activations for the way back, megabytes a
# token, so that its pieces are small; larger ones would save a CPU little time. On a GPU six rows of 256: a recorded
# pass is launched at once, and holds its memory as long as training.
READ_TOKENS = {"cpu": 2_048, "cuda": 32_768}
STEP_TOKENS = {"cpu": 256, "cuda": 1_536}


@dataclass(frozen=True)
class Layered:
    """A backbone that carries LoRA, and the head trained with it; with a head of None, the head stays frozen."""

    backbone: Backbone
    head: Head | None
    weight: HeadWeight
    scale: float = 1.0  # α of the head's update

    def parameters(self) -> list[torch.nn.Parameter]:
        """What is trained: LoRA factors, then the head."""
        return [*lora_parameters(self.backbone).values(), *self.head.parameters()]

    def state(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """A copy of everything that is trained."""
        return lora_state(self.backbone), copy.deepcopy(self.head.state_dict())

    def load(self, state: tuple[dict[str, Tensor], dict[str, Tensor]]) -> None:
        """Put a copy made by `state` back."""
        load_lora_state(self.backbone, state[0])
        self.head.load_state_dict(state[1])


@dataclass(frozen=True)
class Texts:
    """One split: N documents, their order in each round by its number, rows per step, and the condition source."""

    table: TokenTable
    orders: Orders
    rows: int | None = None
    condition: Source | None = None

    def told(
        self, arrangement: Arrangement, rows: Tensor, head: Head | None
    ) -> tuple[HeadUpdate | None, Tensor | None]:
        """The head's update for rows (B,), and each row's group (B,) where there are several."""
        condition, group = self.condition(arrangement, rows) if self.condition else (None, None)
        update = head.factors(condition) if head is not None else None
        return update, group if update is not None and update.groups > 1 else None


@dataclass(frozen=True)
class StepLayers:
    """How a training step goes through the layers: in which pieces, and by which pass."""

    run: Run
    device: torch.device
    budget: int  # tokens a piece, padding included
    length: int | None  # of packed rows; None: one document a row
    n_rows: int | None = None  # that every packed piece has, for a recorded pass

    def pieces(self, table: TokenTable, rows: Tensor) -> list[Piece]:
        """Documents rows (B,) in pieces."""
        if self.length is None:
            return list(padded_pieces(table, rows, self.budget, self.device))
        return list(packed_pieces(table, rows, self.length, self.budget, self.device, self.n_rows))

    def states(self, piece: Piece) -> Tensor:
        """The state before each scored token, (M, C) float32 or wider."""
        hidden = self.run(piece.ids, piece.position, piece.mask).flatten(0, 1)
        return hidden.index_select(0, piece.state).to(torch.promote_types(hidden.dtype, torch.float32))

    def release(self) -> None:
        """Give back what a recorded pass holds."""
        if isinstance(self.run, RecordedLayers):
            self.run.release()


@dataclass
class Training:
    """How a training went: one entry of the curve a validation; `failure` where no state was worth keeping."""

    curve: list[dict] = field(default_factory=list)
    best: float = math.inf  # nats a token on validation
    best_epoch: float = 0.0
    failure: str | None = None


def fit_layers(
    both: Layered,
    learn: Texts,
    check: Texts,
    settings: TrainSettings,
    learning_rate: float,
    processes: Processes | None = None,
    progress: bool = False,
    record: bool = True,
) -> Training:
    """Train LoRA factors and head in place, validating after each epoch, and leave both in their best state.

    Dropout draws from torch's global generator: seed it, alike in all processes. `record`: see `step_layers`.
    """
    layers = step_layers(both.backbone, learn.table, record)
    try:
        return _fit(both, layers, learn, check, settings, learning_rate, processes, progress)
    finally:
        layers.release()


def step_layers(backbone: Backbone, table: TokenTable, record: bool = True) -> StepLayers:
    """The way through a backbone with LoRA for documents of a table: packed where the model's states allow it.

    `record`: on a GPU, packed pieces of one shape are recorded once and replayed.
    """
    device, longest = backbone.device, int(table.lengths.max())
    budget = STEP_TOKENS.get(device.type, STEP_TOKENS["cpu"])
    if not takes_packed(backbone, longest):
        return StepLayers(Layers(backbone), device, budget, None)
    length = row_length(longest, budget)
    n_rows = max(1, budget // length)
    found = recorded(backbone, n_rows, length) if record else None
    return StepLayers(found or Layers(backbone), device, budget, length, n_rows if found else None)


def _fit(
    both: Layered,
    layers: StepLayers,
    learn: Texts,
    check: Texts,
    settings: TrainSettings,
    learning_rate: float,
    processes: Processes | None,
    progress: bool,
) -> Training:
    """What `fit_layers` does, by this way through the layers."""
    optimiser = torch.optim.AdamW(both.parameters(), lr=learning_rate, weight_decay=settings.weight_decay)
    counts, found, state, misses = torch.from_numpy(check.table.n_scored), Training(), None, 0
    for epoch in range(settings.epochs + 1):  # the first round only reads
        train_nll = None
        if epoch:
            arrangement = learn.orders(epoch - 1)
            text = f"epoch {epoch}/{settings.epochs}"
            batches = _bar(arrangement.steps(learn.rows), text, progress)
            train_nll = _epoch(both, layers, learn, arrangement, batches, optimiser, processes)
        value = float(average(read_layers(both, check, processes), counts))
        found.curve.append({"epoch": float(epoch), "train_nll": train_nll, "validation_nll": value})
        if value < found.best:
            found.best, found.best_epoch, misses, state = value, float(epoch), 0, both.state()
        else:
            misses += 1
        if misses > settings.patience or not math.isfinite(value):
            break
    if state is None:
        found.failure = f"the loss was not finite at learning rate {learning_rate:g}"
    else:
        both.load(state)
    return found


@torch.no_grad()
def read_layers(both: Layered, texts: Texts, processes: Processes | None = None) -> Tensor:
    """Nats (N,) float64 of each document's scored tokens, on the host; the batches are those of round 0."""
    table, device = texts.table, both.backbone.device
    out = torch.zeros(len(table), dtype=torch.float64, device=device)
    if both.head is not None:
        both.head.eval()
    arrangement = texts.orders(0)
    for rows in _share(arrangement.steps(texts.rows), processes):
        update, group = texts.told(arrangement, rows, both.head)
        for place in _readings(table, rows, device):
            part = padded_with_prefix(table, rows[place], device)
            own = None if group is None else group.to(device)[place.to(device)]
            out[rows[place].to(device)] = row_losses(both, update, own, *part)
    return (processes.sum(out) if processes else out).cpu()


@torch.no_grad()
def row_losses(
    both: Layered, update: HeadUpdate | None, group: Tensor | None, ids: Tensor, mask: Tensor, prefix: Tensor
) -> Tensor:
    """Nats of each row (B,), float64: ids and mask (B, T), prefix (B,), group (B,) or None for one update."""
    hidden = both.backbone.hidden(ids, mask).half()
    rows_nll = torch.zeros(len(ids), dtype=torch.float64, device=ids.device)

    def losses(h: Tensor, target: Tensor, row: Tensor) -> Tensor:
        groups = [None if group is None else group[row]]
        nll = token_losses(h, target, both.weight, [update], groups=groups, scale=both.scale)[0].double()
        lengths = torch.bincount(row, minlength=len(ids))
        rows_nll.copy_(torch.segment_reduce(nll, "sum", lengths=lengths, axis=0, unsafe=True))
        return nll

    next_token(hidden, ids, mask, prefix, losses)
    return rows_nll


def padded_with_prefix(
    table: TokenTable, rows: Tensor, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Documents rows (B,) to ids (B, T), mask (B, T) and prefix (B,) on the device."""
    ids, mask = table.padded(rows)
    prefix = torch.from_numpy(table.prefix[rows.numpy()].astype(np.int64))
    return ids.to(device), mask.to(device), prefix.to(device)


def _epoch(
    both: Layered,
    layers: StepLayers,
    texts: Texts,
    arrangement: Arrangement,
    batches: Iterable[Tensor],
    optimiser: torch.optim.Optimizer,
    processes: Processes | None,
) -> float:
    """One pass over the training documents; returns nats a token."""
    both.head.train()
    total, tokens = torch.zeros((), device=both.backbone.device), 0
    for rows in batches:
        optimiser.zero_grad(set_to_none=True)
        count = int(texts.table.n_scored[rows.numpy()].sum())
        total += gradients(both, layers, texts, arrangement, rows, count, processes)
        if processes:
            processes.sum_gradients(both.parameters())
        optimiser.step()
        tokens += count
    both.head.eval()
    return float(processes.sum(total) if processes else total) / tokens


def gradients(
    both: Layered,
    layers: StepLayers,
    texts: Texts,
    arrangement: Arrangement,
    rows: Tensor,
    count: int,
    processes: Processes | None = None,
) -> Tensor:
    """Add the gradients of the step's mean loss over `count` tokens; returns this process's sum of nats ()."""
    device, total = both.backbone.device, torch.zeros((), device=both.backbone.device)
    update, group = texts.told(arrangement, rows, both.head)
    own = _share(torch.arange(len(rows)), processes)
    pieces = layers.pieces(texts.table, rows[own])
    for number, piece in enumerate(pieces, start=1):
        place = own[piece.documents]  # (D,)
        at = None if group is None else group.to(device)[place.to(device)]
        nll = _loss(both, update, at, piece, layers)
        total += nll.detach()
        (nll / count).backward(
            retain_graph=number < len(pieces)
        )  # the pieces share the head's part of the graph
        del nll  # and with it the layers' part, before the next piece makes its own
    return total


def _loss(
    both: Layered, update: HeadUpdate, group: Tensor | None, piece: Piece, layers: StepLayers
) -> Tensor:
    """Sum of nats (), differentiable through head and layers; group (D,) of each of the piece's documents."""
    groups = [None if group is None else group[piece.owner]]
    h = layers.states(piece)
    return head_losses(h, piece.target, both.weight, [update], groups=groups, scale=both.scale).sum()


def _readings(table: TokenTable, rows: Tensor, device: torch.device) -> list[Tensor]:
    """Places (b,) within rows (B,), in pieces that a reading takes at once."""
    budget = READ_TOKENS.get(device.type, READ_TOKENS["cpu"])
    return [torch.from_numpy(piece) for piece in by_length(table.lengths[rows.numpy()], budget)]


def _share(items: Sequence, processes: Processes | None):
    """This process's part."""
    return items[processes.index :: processes.count] if processes else items
