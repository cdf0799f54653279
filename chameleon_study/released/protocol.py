"""The released procedure, the described one and the honest one as settings of the same switches.

    preset("as_released")    what the released scripts do (ChameleonLLM's repository at f163587)
    preset("as_described")   what the paper's text says
    preset("honest")         what this book's study does

A switch can be turned alone, so that its worth can be measured; contradictions are refused with the reason.
"""

from importlib.resources import files
from typing import Any, Literal

import yaml
from pydantic import model_validator

from chameleon_lite.errors import known
from chameleon_lite.settings import Settings, validated

from ..config import ProtocolSettings

# by switch: its value in each preset, what the paper, the released code and this study do, a label for charts
SWITCHES = yaml.safe_load((files(__package__) / "switches.yaml").read_text(encoding="utf-8"))
CONTRADICTIONS = yaml.safe_load((files(__package__) / "contradictions.yaml").read_text(encoding="utf-8"))


class Protocol(Settings):
    """Every difference between the paper's text, the released scripts and the honest study."""

    objective: Literal["last", "next_token"]
    ignored: Literal["id 0", "padding"]
    attention: Literal["id not 0", "padding"]
    average: Literal["batch", "token"]
    reads: Literal["row", "prefix"]
    padding_in_mean: bool
    validation_clusters: Literal["itself", "train"]
    kmeans: Literal["ten steps", "plusplus"]
    batches: Literal["fixed", "fresh"]
    initialisation: Literal["wikitext", "alpaca", "described", "no_op"]
    split: Literal["script", "disjoint"]
    reported: Literal["lowest validation", "test"]
    layers: bool
    backbone: Literal["cached", "live", "live with dropout"]

    @model_validator(mode="after")
    def _contradictions(self) -> "Protocol":
        for rule in CONTRADICTIONS:
            if all(getattr(self, switch) == value for switch, value in rule["switches"].items()):
                raise ValueError(rule["why"])
        return self


_NAMES = ("as_released", "as_described", "honest")
PRESETS = {name: Protocol(**{switch: row[name] for switch, row in SWITCHES.items()}) for name in _NAMES}


def preset(name: str, **switches: Any) -> Protocol:
    """A preset with some switches turned; UserError for unknown names and for contradictions."""
    known("protocol", [name], PRESETS)
    known("protocol switch", switches, Protocol.model_fields)
    return validated(Protocol, PRESETS[name].model_dump() | switches, f"protocol {name}: ")


def protocol_of(settings: ProtocolSettings) -> Protocol:
    """The protocol an experiment's settings mean (without its `mend` list)."""
    return preset(settings.preset, **settings.switches)


def mended(settings: ProtocolSettings) -> list[tuple[str, ProtocolSettings]]:
    """The protocols of a walk, checked, each with the switch that was mended for it: "" for the start."""
    step, steps = settings.model_copy(update={"mend": ()}), []
    for switch in ("", *settings.mend):
        if switch:
            turned = step.switches | {switch: getattr(PRESETS["honest"], switch, "")}
            step = step.model_copy(update={"switches": turned})
        protocol_of(step)
        steps.append((switch, step))
    return steps


def voices() -> list[dict[str, str]]:
    """One row per switch: its name and what the paper, the released code and this study do."""
    names = ("Paper", "Released code", "Here")
    return [{"switch": name} | {n: row[n] for n in names} for name, row in SWITCHES.items()]
