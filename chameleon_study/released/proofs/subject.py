"""What proofs examine: a corpus under the released procedure, and one seed of its trained heads."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from chameleon_lite import Backbone
from chameleon_lite.app.corpus import Corpus
from chameleon_lite.errors import UserError

from ...config import Experiment
from ...corpora import load_corpus
from ...prepare import Say
from ..prepare import ReleasedCorpus, prepare_released
from ..run import measure, train_released

REGIMES = ("R0", "R1", "R4")
Shown = tuple[dict[str, float], dict]  # a proof's numbers by name, and what else its sentence says


@dataclass
class Subject:
    """One backbone and corpus; `settings` is an experiment file whose protocol caches its states."""

    settings: Experiment
    backbone: Backbone
    corpus: str
    data_dir: Path | None = None
    seed: int = 0
    say: Say = lambda text: None

    @cached_property
    def texts(self) -> Corpus:
        return load_corpus(self.corpus, data_dir=self.data_dir)

    @cached_property
    def material(self) -> ReleasedCorpus:
        """The corpus as the released procedure sees it."""
        protocol = self.settings.protocol
        if protocol.preset != "as_released" or set(protocol.switches) - {"initialisation"} or protocol.mend:
            name = self.settings.name
            raise UserError(f"{name}: proofs are about the released procedure, protocol as_released")
        return prepare_released(self.settings, self.backbone, self.texts, self.say)

    @cached_property
    def trained(self) -> dict[str, tuple]:
        """(member or None, fixed batches by split, metrics, rows) of each regime, one seed; see `measure`."""
        self.say(f"training {', '.join(REGIMES[1:])} for the proofs, seed {self.seed}")
        return {
            regime: (member, orders, *measure(self.material, regime, member, orders))
            for regime, member, orders, _ in train_released(self.material, list(REGIMES), self.seed)
        }

    def facts(self) -> dict:
        """The `data` of a proof that needs no hidden states."""
        facts = {name: getattr(self.texts, name) for name in ("hash", "source", "notes")}
        return facts | {"corpus": self.texts.name, "backbone_hash": self.backbone.hash}

    @property
    def prompts(self) -> bool:
        """Whether the corpus has prompts and responses."""
        return bool((self.material.tables["train"].prefix > 1).any())

    @property
    def table(self) -> int:
        """The number of the paper's table for this kind of corpus."""
        return 2 if self.prompts else 1
