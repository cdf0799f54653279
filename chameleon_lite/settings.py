"""Settings of training on texts: frozen, validated, every number with its unit. Unknown keys are refused."""

import hashlib
import json
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_serializer

from .errors import UserError

Arithmetic = Literal["auto", "float32", "bfloat16", "float16"]
Count = Annotated[int, Field(ge=1, le=1 << 40)]  # of documents, tokens, steps
Rank = Annotated[int, Field(ge=1, le=1 << 14)]
Rate = Annotated[float, Field(gt=0)]  # AdamW's learning rate
Seed = Annotated[int, Field(ge=0, lt=1 << 32)]
Share = Annotated[float, Field(ge=0, le=1)]


class Settings(BaseModel):
    """Base of all settings: immutable, no unknown keys, finite numbers; no boolean where a number is due."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    # Of fields that came later, the value that older settings mean: not written, so no key changes.
    unwritten: ClassVar[dict[str, Any]] = {}

    @model_serializer(mode="wrap")
    def _without_later_fields(self, values) -> dict[str, Any]:
        later = {name for name, value in self.unwritten.items() if getattr(self, name) == value}
        return {name: value for name, value in values(self).items() if name not in later}

    @field_validator("*", mode="before")
    @classmethod
    def _no_boolean_numbers(cls, value: Any, info) -> Any:
        kind, parts = str(cls.model_fields[info.field_name].annotation), [value]
        if isinstance(value, dict):
            parts = value.values() if "dict" in kind else []  # settings within settings check themselves
        elif isinstance(value, list | tuple):
            parts = value
        if "bool" not in kind and any(isinstance(part, bool) for part in parts):
            raise ValueError("true and false are no numbers")
        return value

    def key(self, length: int = 8) -> str:
        """The first hex digits of the sha256 of the canonical JSON: equal settings, equal key."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:length]


def validated(kind: type[BaseModel], fields: Mapping[str, Any], where: str = "") -> Any:
    """Settings from their fields; UserError, in one line after `where`, for the first that is wrong."""
    try:
        return kind(**fields)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"])) or "settings"
        raise UserError(f"{where}{name}: {first['msg'].removeprefix('Value error, ')}") from None


class TokenSettings(Settings):
    """How documents become tokens and which of them are scored."""

    max_length: int = Field(256, ge=2, le=1 << 40, description="tokens a document is cut to")
    prefix_tokens: Count = Field(16, description="first tokens of plain text: they condition, never scored")
    min_scored: Count = Field(8, description="scored tokens below which a document is dropped")
    condition_on: Literal["prompt", "instruction"] = Field(
        "prompt", description="for prompt/response documents, the span the condition reads"
    )


class ClusterSettings(Settings):
    """Groups are cut from K = N // batch_rows clusters, 1 to 4,096; the study's banks route by others."""

    batch_rows: Count = Field(32, description="most documents of a conditioning group (random order: about)")
    minimum: Count = Field(4, description="documents below which a cluster's members join their nearest ones")
    routing_clusters: int = Field(33, ge=2, le=4_096, description="clusters that the study routes by")


class TrainSettings(Settings):
    """The optimiser's side. Of a step's groups, the first and last may continue in the neighbouring steps."""

    epochs: Count = Field(5, description="passes over the training documents")
    rows_per_step: Count = Field(
        32, description="documents per optimiser step, all processes together; groups are cut independently"
    )
    weight_decay: float = Field(0.01, ge=0, le=100, description="AdamW's decoupled weight decay")
    validations_per_epoch: Count = Field(1, description="validations per epoch, evenly spaced")
    patience: int = Field(1, ge=0, description="validations without improvement that do not stop training")
    scale: float = Field(1.0, gt=0, le=1e6, description="alpha: multiplies the low-rank part of updates")
    feature_dtype: Arithmetic = Field("auto", description="of the pass that stores states; auto: the fastest")
    matmul_dtype: Arithmetic = Field(
        "auto", description="of the head's large products (fast form; the plain form rounds only the weight)"
    )
    unwritten = {"masks": "group"}  # settings written before this field meant "group"
    masks: Literal["group", "row"] = Field(
        "row", description="one dropout mask per row, or (released code) per group"
    )
