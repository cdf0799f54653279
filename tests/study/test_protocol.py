"""Presets, single switches, walks, and the combinations that are refused with their reason."""

import pytest

from chameleon_lite.errors import UserError
from chameleon_study.config import ProtocolSettings
from chameleon_study.released.protocol import PRESETS, Protocol, mended, preset, protocol_of, voices

WALK = (
    "average",
    "ignored",
    "attention",
    "objective",
    "padding_in_mean",
    "reads",
    "validation_clusters",
    "kmeans",
    "batches",
    "initialisation",
    "split",
    "reported",
)


def test_presets_differ_where_the_three_voices_do():
    released, honest = PRESETS["as_released"], PRESETS["honest"]
    same = [name for name in Protocol.model_fields if getattr(released, name) == getattr(honest, name)]
    assert same == ["layers", "backbone"]
    assert PRESETS["as_described"].layers and PRESETS["as_described"].split == "disjoint"


def test_every_switch_speaks_in_three_voices():
    rows = voices()
    assert [row["switch"] for row in rows] == list(Protocol.model_fields)
    assert all(len(row[voice]) > 10 for row in rows for voice in ("Paper", "Released code", "Here"))


@pytest.mark.parametrize(
    ("base", "switches", "reason"),
    [
        ("as_released", {"layers": True}, "changes the hidden states in every step.*set backbone: live"),
        ("as_released", {"objective": "next_token"}, "scores real tokens only.*set ignored: padding"),
        ("as_released", {"reads": "prefix", "padding_in_mean": False}, "set objective: next_token"),
        ("honest", {"padding_in_mean": True}, "reads: prefix has no padding"),
        ("as_released", {"objective": "lats"}, "objective: Input should be 'last' or 'next_token'"),
        ("as_released", {"objectiv": "last"}, "unknown protocol switch 'objectiv': did you mean 'objective'"),
        ("released", {}, "unknown protocol 'released': did you mean 'as_released'"),
    ],
)
def test_wrong_combinations_are_refused_with_the_reason(base, switches, reason):
    with pytest.raises(UserError, match=reason):
        preset(base, **switches)


def test_a_walk_ends_at_the_honest_protocol():
    steps = mended(ProtocolSettings(preset="as_released", mend=WALK))
    assert [name for name, _ in steps] == ["", *WALK]
    assert (
        protocol_of(steps[0][1]) == PRESETS["as_released"] and protocol_of(steps[-1][1]) == PRESETS["honest"]
    )


def test_a_walk_through_a_contradiction_is_refused():
    with pytest.raises(UserError, match="set ignored: padding"):
        mended(ProtocolSettings(preset="as_released", mend=("objective", "ignored")))
    with pytest.raises(UserError, match="unknown protocol switch 'ignord'"):
        mended(ProtocolSettings(preset="as_released", mend=("ignord",)))
