"""Settings of an experiment: frozen, validated, every number with its unit.

An experiment is one YAML file. `load_experiment` reads it, combines the profile's values (profiles.yaml), the file's
own and those of its `profiles:` section, and returns `Experiment`. Whatever cannot be used is refused by its key.
"""

from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, Field, model_validator

from chameleon_lite import settings as kinds
from chameleon_lite.app.rows import flaw_of
from chameleon_lite.errors import UserError, known, unknown
from chameleon_lite.settings import ClusterSettings, Settings, TokenSettings, TrainSettings, validated

DEEPEST = 8  # mappings and lists of a file inside one another
Budget = Annotated[int, Field(ge=0)]  # tokens
Dropout = Annotated[float, Field(ge=0, lt=1)]


class DataSettings(Settings):
    """How much of a corpus is used."""

    max_train_tokens: kinds.Count | None = Field(None, description="tokens of training documents; none = all")
    max_validation_documents: kinds.Count | None = Field(None, description="validation documents; none = all")
    max_test_documents: kinds.Count | None = Field(None, description="test documents; none = all")
    subset_seed: kinds.Seed = Field(0, description="seed of the draw of those subsets; never varied")
    unwritten = {"budgets": ()}
    budgets: tuple[Budget, ...] = Field((), description="runs with each as max_train_tokens, nested; 0 = all")


class SweepSettings(Settings):
    """What is tried on validation, with seeds other than the reported ones."""

    grid: tuple[kinds.Rate, ...] = Field((1e-4, 3e-4, 1e-3, 3e-3), min_length=1, description="AdamW rates")
    seeds: int = Field(2, ge=1, le=1_000, description="sweep seeds, numbered 1000, 1001, …")
    extend: int = Field(2, ge=0, le=20, description="times the grid may grow while its edge is best")
    unwritten = {"dropouts": (), "trials": 0, "cosine_epochs": 5}
    dropouts: tuple[Dropout, ...] = Field((), description="with every rate, for hyper-networks; none = 0.5")
    trials: int = Field(0, ge=0, le=900, description="random choices, where searched; 0 = the grid")
    cosine_epochs: kinds.Count = Field(5, description="over which a cosine falls to zero, or over all")


class GenerateSettings(Settings):
    """Continuing test prompts (claim 16)."""

    documents: kinds.Count = Field(200, description="test documents that are continued; all if fewer")
    new_tokens: int = Field(64, ge=4, le=1 << 20, description="tokens after each prompt, always as many")
    regimes: tuple[str, ...] = Field((), description="regimes that write; none = all on cached states")
    rows: kinds.Count = Field(128, description="prompts continued side by side")


class ProbeSettings(Settings):
    """What trained heads are evaluated on beyond the test split."""

    unwritten = {"generate": None}
    corpora: tuple[str, ...] = Field((), description="corpora whose test documents are read too (claim 8)")
    foreign_shares: tuple[kinds.Share, ...] = Field((), description="shares of their vectors (claim 7)")
    foreign_regimes: tuple[str, ...] = Field((), description="regimes read with such foreign vectors")
    seen_documents: int = Field(0, ge=0, le=1 << 40, description="training documents read too; 0 = none")
    position_bins: int = Field(0, ge=0, le=1 << 20, description="bins of 16 scored positions; 0 = none")
    generate: GenerateSettings | None = Field(None, description="continuing test prompts; none = not done")


class ProtocolSettings(Settings):
    """What is scored and how it is trained: a preset of released/protocol.py and the switches that differ from it."""

    preset: Literal["honest", "as_released", "as_described"] = Field("honest", description="all switches")
    switches: dict[str, str | bool] = Field({}, description="switch: value, over the preset")
    mend: tuple[str, ...] = Field((), description="switches turned to honest one by one, a run after each")
    held_out: float = Field(0.1, gt=0, le=1, description="validation share of instructions, inside training")

    @property
    def honest(self) -> bool:
        """Whether this is the honest protocol; anything else goes through released/run.py."""
        return self.preset == "honest" and not self.switches


class Experiment(Settings):
    """One YAML file after its profile was applied."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$", max_length=100, description="file name of its results")
    what: str = Field("", description="one sentence for tables and help")
    profile: Literal["smoke", "colab", "paper"] = "smoke"
    backbone: str = "smollm2"
    corpora: tuple[str, ...] = Field(("docstrings",), min_length=1)
    regimes: tuple[str, ...] = Field(min_length=1)
    seeds: int = Field(3, ge=1, le=1_000, description="reported seeds, numbered 0, 1, …")
    learning_rates: dict[str, kinds.Rate] = Field({}, description="AdamW rate per regime; else swept")
    shared_order: bool = Field(False, description="one clustered order, and so one pass, for all regimes")
    tokens: TokenSettings = TokenSettings()
    data: DataSettings = DataSettings()
    clusters: ClusterSettings = ClusterSettings()
    train: TrainSettings = TrainSettings()
    sweep: SweepSettings = SweepSettings()
    probes: ProbeSettings = ProbeSettings()
    protocol: ProtocolSettings = ProtocolSettings()

    @model_validator(mode="after")
    def _contradictions(self) -> "Experiment":
        from .regimes import REGIMES  # here, for it imports torch

        known("regime", (*self.regimes, *self.probes.foreign_regimes), REGIMES)
        grid = [f"{rate:g}" for rate in self.sweep.grid]  # as the sweep's files and heads are named
        each_once = {"regimes": self.regimes, "corpora": self.corpora, "sweep.grid": grid}
        for setting, named in (each_once | {"data.budgets": self.data.budgets}).items():
            if len(set(named)) < len(named):
                raise ValueError(f"{setting} names {max(named, key=named.count)!r} twice")
        if self.tokens.prefix_tokens + self.tokens.min_scored > self.tokens.max_length:
            sizes = f"prefix_tokens {self.tokens.prefix_tokens} + min_scored {self.tokens.min_scored}"
            raise ValueError(f"{sizes} exceed max_length {self.tokens.max_length}: nothing could be scored")
        writing = self.probes.generate.regimes if self.probes.generate else ()
        for setting, named in (("learning_rates", self.learning_rates), ("probes.generate.regimes", writing)):
            if extra := set(named) - set(self.regimes):
                raise ValueError(f"{setting} names {sorted(extra)}, which the experiment does not run")
        if self.probes.generate and not self.protocol.honest:
            raise ValueError("probes.generate belongs to the honest protocol: released tables write nothing")
        if not self.protocol.honest:  # the released scripts draw one mask for each batch
            object.__setattr__(self, "train", self.train.model_copy(update={"masks": "group"}))
        return self


PROFILES: dict[str, dict] = yaml.safe_load((files(__package__) / "profiles.yaml").read_text("utf-8"))


def merged(*layers: dict[str, Any]) -> dict[str, Any]:
    """Nested dictionaries combined, later ones on top."""
    out: dict[str, Any] = {}
    for key, value in (item for layer in layers for item in layer.items()):
        both = isinstance(value, dict) and isinstance(out.get(key), dict)
        out[key] = merged(out[key], value) if both else value
    return out


def experiment_from(raw: dict[str, Any], profile: str = "smoke", **overrides: Any) -> Experiment:
    """The experiment a parsed YAML means under a profile; `overrides` (None = not given) win over both."""
    _check_values(raw, "settings", (), set())
    raw = dict(raw)
    sections = raw.pop("profiles", {})
    if not isinstance(sections, dict) or not all(isinstance(part, dict) for part in sections.values()):
        raise UserError("profiles: must be a mapping of profiles to mappings of settings")
    known("profile", (profile, *sections), PROFILES)
    given = {k: v for k, v in overrides.items() if v is not None}
    values = merged(PROFILES[profile], raw, sections.get(profile, {}), {"profile": profile}, given)
    _check_keys(values, Experiment)
    return validated(Experiment, values, f"experiment {raw.get('name', '?')}: ")


class _Loader(yaml.SafeLoader):
    """YAML as `yaml.safe_load` reads it, and no mapping names a key twice: the last would win unseen."""

    def compose_mapping_node(self, anchor: str | None) -> yaml.MappingNode:
        node, seen = super().compose_mapping_node(anchor), set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                problem = f"the key {key.value[:40]!r} stands there twice"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
            seen.add(key.value)
        return node


def load_experiment(path: Path | str, profile: str = "smoke", **overrides: Any) -> Experiment:
    """Read one experiment file; raises UserError with one line for anything a user can mend in it."""
    path = Path(path)
    if not path.is_file():
        near = sorted(p.name for p in path.parent.glob("*.yaml"))
        raise unknown("experiment file", str(path), near) if near else UserError(f"no experiment file {path}")
    try:
        raw = _Loader(path.read_bytes().decode("utf-8-sig")).get_single_data()
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        reason = f"line {mark.line + 1}: {error.problem}" if mark else str(error).partition("\n")[0]
        raise UserError(f"{path} is not valid YAML in UTF-8: {reason}") from None
    if not isinstance(raw, dict):
        raise UserError(f"{path} must be a mapping of settings, found {type(raw).__name__}")
    try:
        return experiment_from(raw, profile, **overrides)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def _check_values(value: Any, where: str, above: tuple[int, ...], seen: set[int]) -> None:
    """Refuse what is no setting of any kind: keys and strings that are no text, what holds itself."""
    if isinstance(value, dict | list):
        if id(value) in above or len(above) == DEEPEST:
            raise UserError(f"{where}: holds itself, or is nested more than {DEEPEST} deep")
        if id(value) in seen:  # an alias; without this, aliases of aliases would take for ever
            return
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            if isinstance(value, dict) and not isinstance(key, str):
                raise UserError(f"{where}: the key {key!r} is {type(key).__name__}, no text: quote it")
            _check_values(item, f"{where}.{key}".removeprefix("settings."), (*above, id(value)), seen)
        seen.add(id(value))
    elif isinstance(value, str) and (flaw := flaw_of(value)):
        raise UserError(f"{where}: {flaw}")


def _check_keys(values: dict[str, Any], model: type[BaseModel], where: str = "") -> None:
    """Refuse unknown keys with the nearest valid one: pydantic lists none."""
    known("setting", (where + key for key in values), [where + name for name in model.model_fields])
    for key, value in values.items():
        kind = model.model_fields[key].annotation
        if isinstance(value, dict) and isinstance(kind, type) and issubclass(kind, BaseModel):
            _check_keys(value, kind, f"{where}{key}.")
