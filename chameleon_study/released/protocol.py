"""The released procedure, the described one and the honest one as settings of the same switches.

    Protocol(objective=…, average=…, …)     one field per difference, each documented in three voices
    preset("as_released")                   what the released scripts do (ChameleonLLM's repository at f163587)
    preset("as_described")                  what the paper's text says
    preset("honest")                        what this book's study does

A switch between two procedures can be turned alone, so that its worth can be measured; combinations
that contradict themselves are refused with the reason.
"""

from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator

from chameleon_lite.errors import UserError, unknown
from chameleon_lite.settings import Settings

from ..config import ProtocolSettings


def _switch(values: tuple, paper: str, released: str, here: str) -> Any:
    """A field without default: (as released, honest) values, and what each of the three voices holds."""
    presets = dict(zip(("as_released", "honest"), values))
    description = f"Paper: {paper} Released code: {released} Here: {here}"
    return Field(description=description, json_schema_extra=presets)


class Protocol(Settings):
    """Every difference between the paper's text, the released scripts and the honest study."""

    objective: Literal["last", "full", "next_token"] = _switch(
        ("last", "next_token"),
        "next-token cross-entropy over the text.",
        "compute_loss, mode last: the token at the final padded position, from the state at that position; "
        "mode full: every position, unshifted too.",
        "next_token: the state before a token predicts it, at every position after the prefix.",
    )
    ignored: Literal["id 0", "padding"] = _switch(
        ("id 0", "padding"),
        "padding is masked.",
        "ignore_index is 0, an ordinary token; padding counts.",
        "positions of padding are not scored, whatever their id.",
    )
    attention: Literal["id not 0", "padding"] = _switch(
        ("id not 0", "padding"),
        "padding is masked.",
        "collate_fn masks the positions whose id is 0; padding is attended.",
        "padding is masked.",
    )
    average: Literal["batch", "token"] = _switch(
        ("batch", "token"),
        "the average loss on the validation set.",
        "evaluate and train_lm: the unweighted mean over batches of each batch's mean.",
        "sums of losses over sums of tokens, divided once.",
    )
    reads: Literal["row", "prefix"] = _switch(
        ("row", "prefix"),
        "the mean embedding of each input.",
        "the whole row on WikiText-2, scored token included; the instruction, or the prompt, on Alpaca.",
        "the prefix (first tokens, or the prompt), nothing of which is scored.",
    )
    padding_in_mean: bool = _switch(
        (True, False),
        "the mean over the input's token embeddings.",
        "the mean over all positions of the padded row.",
        "the mean over real tokens.",
    )
    validation_clusters: Literal["itself", "train"] = _switch(
        ("itself", "train"),
        "the same clustering pipeline in training and validation.",
        "the whole validation set is clustered on itself.",
        "validation rows go to the nearest centroid fitted on training.",
    )
    kmeans: Literal["ten steps", "plusplus"] = _switch(
        ("ten steps", "plusplus"),
        "k-means, k = examples // batch size, clusters large enough for stable statistics.",
        "random rows as start, 10 Lloyd steps, one run, no minimum size.",
        "k-means++ start, run until it stops moving, groups below 4 rows join a neighbour.",
    )
    batches: Literal["fixed", "fresh"] = _switch(
        ("fixed", "fresh"),
        "mini-batches of one cluster.",
        "one list of batches, the same composition and order in every epoch.",
        "composition and order drawn anew every epoch.",
    )
    initialisation: Literal["wikitext", "alpaca", "described", "no_op"] = _switch(
        ("wikitext", "no_op"),
        "Xavier and small normal for the hyper-network; ordinary LoRA otherwise (described).",
        "LoRA's two factors both N(0, 0.01²); the hyper-network Xavier with a last layer N(0, 0.001²) in the "
        "WikiText script (wikitext), PyTorch's default in the Alpaca script (alpaca).",
        "both heads start as the frozen head exactly (no_op).",
    )
    split: Literal["script", "disjoint"] = _switch(
        ("script", "disjoint"),
        "training and validation sets.",
        "WikiText-2's own splits; on Alpaca a tenth of the rows that are also trained on.",
        "no document, and no near-duplicate, on both sides.",
    )
    reported: Literal["lowest validation", "test"] = _switch(
        ("lowest validation", "test"),
        "validation after each epoch.",
        "the lowest validation loss of all epochs; the test split is never read.",
        "the epoch is chosen on validation, the number is the test split's.",
    )
    layers: bool = _switch(
        (False, False),
        "LoRA in the transformer layers in both regimes.",
        "apply_lora_to_module looks for nn.Linear, GPT-2 has Conv1D: 0 of 48 are adapted.",
        "the head alone in most regimes; both in R16 and R17.",
    )
    backbone: Literal["cached", "live", "live with dropout"] = _switch(
        ("cached", "cached"),
        "a frozen backbone.",
        "train_lm puts the frozen backbone in train mode, so its dropout is on (live with dropout).",
        "its states are computed once and kept, without dropout (cached); live is for layers that train.",
    )

    @model_validator(mode="after")
    def _contradictions(self) -> "Protocol":
        cached, next_token = self.backbone == "cached", self.objective == "next_token"
        reasons = {
            "layers: true changes the hidden states in every step, so backbone cannot be cached; "
            "set backbone: live": self.layers and cached,
            "objective next_token scores real tokens only; ignored: id 0 belongs to last and full: "
            "set ignored: padding": next_token and self.ignored == "id 0",
            f"reads: prefix leaves the prefix unscored, objective {self.objective} scores fixed positions; "
            "set objective: next_token": self.reads == "prefix" and not next_token,
            "reads: prefix has no padding that padding_in_mean could average; "
            "set padding_in_mean: false": self.reads == "prefix" and self.padding_in_mean,
            "objective full is measured on cached states only: it is a control, not a table; "
            "set backbone: cached": self.objective == "full" and not cached,
        }
        for reason, clash in reasons.items():
            if clash:
                raise ValueError(reason)
        return self


def _values(name: str) -> dict[str, Any]:
    return {switch: field.json_schema_extra[name] for switch, field in Protocol.model_fields.items()}


DESCRIBED = {"reads": "row", "validation_clusters": "itself", "initialisation": "described"}
DESCRIBED |= {"reported": "lowest validation", "layers": True, "backbone": "live"}  # the rest as in honest
PRESETS: dict[str, Protocol] = {
    "as_released": Protocol(**_values("as_released")),
    "as_described": Protocol(**_values("honest") | DESCRIBED),
    "honest": Protocol(**_values("honest")),
}


def preset(name: str, **switches: Any) -> Protocol:
    """A preset with some switches turned; UserError for unknown names and for contradictions, with the reason."""
    if name not in PRESETS:
        raise unknown("protocol", name, PRESETS)
    for switch in switches:
        if switch not in Protocol.model_fields:
            raise unknown("protocol switch", switch, Protocol.model_fields)
    try:
        return Protocol(**{**PRESETS[name].model_dump(), **switches})
    except ValidationError as error:
        first = error.errors()[0]
        where = "".join(f"{part}: " for part in first["loc"])
        raise UserError(f"protocol {name}: {where}{first['msg'].removeprefix('Value error, ')}") from None


def protocol_of(settings: ProtocolSettings) -> Protocol:
    """The protocol an experiment's settings mean (without its `mend` list)."""
    return preset(settings.preset, **settings.switches)


def mended(settings: ProtocolSettings) -> list[tuple[str, ProtocolSettings]]:
    """The protocols of a walk: the start, then one after each switch of `mend` took honest's value, cumulatively.

    Each comes with the name of the switch just turned ("" for the start). Every stop of the walk is checked.
    """
    steps = [("", settings.model_copy(update={"mend": ()}))]
    for switch in settings.mend:
        if switch not in Protocol.model_fields:
            raise unknown("protocol switch", switch, Protocol.model_fields)
        turned = {**steps[-1][1].switches, switch: getattr(PRESETS["honest"], switch)}
        steps.append((switch, steps[-1][1].model_copy(update={"switches": turned})))
    for _, step in steps:
        protocol_of(step)
    return steps


def needs_no_prompt(protocol: Protocol, corpus: str, prompts: bool) -> None:
    """Refuse objective full on prompt/response text, where the released script fails (audit, row 6)."""
    if prompts and protocol.objective == "full" and protocol.ignored == "id 0":
        raise UserError(
            f"objective full with ignored: id 0 cannot run on {corpus}: prompt labels are -100, the ignored id is 0, "
            "so -100 is looked up as a class and cross-entropy fails (as the released script does)"
        )


def voices() -> list[dict[str, str]]:
    """One row per switch: its name and the texts of Paper, Released code and Here, read from the descriptions."""
    rows = []
    for name, field in Protocol.model_fields.items():
        paper, rest = field.description.removeprefix("Paper: ").split(" Released code: ")
        released, here = rest.split(" Here: ")
        rows.append({"switch": name, "Paper": paper, "Released code": released, "Here": here})
    return rows
