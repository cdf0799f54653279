# The public names for type checkers, which do not run what __init__.py does on first use.
from . import engine as engine
from .app.export import export as export
from .app.fit import fit as fit
from .app.stream import adapt as adapt
from .backbone import Backbone as Backbone
from .backbone import load_backbone as load_backbone
from .batches import Arrangement as Arrangement
from .batches import arrange as arrange
from .chameleon import ChameleonLiteForCausalLM as ChameleonLiteForCausalLM
from .chameleon_config import ChameleonLiteConfig as ChameleonLiteConfig
from .cluster import Clustering as Clustering
from .cluster import fit_clusters as fit_clusters
from .embed import mean_embeddings as mean_embeddings
from .heads import Condition as Condition
from .heads import Head as Head
from .heads import HeadUpdate as HeadUpdate
from .heads import HyperHead as HyperHead
from .heads import LoraHead as LoraHead
from .heads import apply_update as apply_update
from .heads import matched_rank as matched_rank
from .lora import add_lora as add_lora
from .loss import HeadWeight as HeadWeight
from .loss import head_losses as head_losses
from .loss import token_losses as token_losses
from .states import ScoredStates as ScoredStates
from .states import hidden_states as hidden_states
from .streams.memory import LearnSettings as LearnSettings
from .streams.memory import Memory as Memory
from .streams.online import LayerStates as LayerStates
from .streams.online import OnlineClusters as OnlineClusters
from .streams.online import learn as learn
from .text import Document as Document
from .text import TokenTable as TokenTable
from .text import tokenise as tokenise
from .train import Member as Member
from .train import average as average
from .train import evaluate as evaluate
from .train import train_heads as train_heads

__version__: str
__all__: list[str]
