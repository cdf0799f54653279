"""How an adapter is fitted on texts of one's own: the settings of `fit`."""

from typing import ClassVar, Literal

from pydantic import Field

from ..settings import ClusterSettings, Count, Rank, Rate, Seed, Settings, TokenSettings, TrainSettings

Choice = Literal["auto", "on", "off"]


class FitSettings(Settings):
    """How an adapter is fitted on texts of one's own."""

    unwritten: ClassVar = {"head": "hyper", "layers": None, "chat": "auto", "bos": "auto", "special": False}
    head: Literal["auto", "lora", "hyper", "layers"] = Field(
        "auto", description="a static LoRA, the hyper-network, LoRA in the layers too; auto: the best of them"
    )
    layers: bool | None = Field(
        None, description="auto tries LoRA in the layers; None: yes, but on a CPU only with a lora_rank"
    )
    rank: Rank = Field(4, description="rank of the head's update")
    lora_rank: int = Field(
        0, ge=0, le=1 << 14, description="rank of LoRA in the layers; 0: none, for auto and layers the head's"
    )
    record_layers: bool = Field(True, description="on a GPU: replay the layers' pass; needs memory")
    dropout: float = Field(0.5, ge=0, lt=1, description="dropout inside the hyper-network, as released")
    condition: Literal["cluster", "centroid", "row"] = Field(
        "cluster", description="what conditions new texts, see conditions.py; training uses groups"
    )
    learning_rate: Rate = Field(1e-3, description="AdamW's learning rate")
    max_train_tokens: Count | None = Field(200_000, description="tokens of training texts; none = all")
    max_held_out: Count | None = Field(500, description="texts of validation and of test each; none = all")
    seed: Seed = Field(0, description="of initialisation, order, clusters and choice of texts")
    chat: Choice = Field("auto", description="prompts by the model's chat template; auto: where it has one")
    bos: Choice = Field("auto", description="a first token; auto: as the tokenizer has it, or the loss says")
    special: bool = Field(False, description="what looks like a special token in a text is one, not text")
    tokens: TokenSettings = TokenSettings()
    clusters: ClusterSettings = ClusterSettings()
    train: TrainSettings = TrainSettings(epochs=3)
