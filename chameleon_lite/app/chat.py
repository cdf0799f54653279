"""How rows are written for a model: its chat template, its first token, and what only looks like a special token.

    turns, or prompt and answer ─ template ─▶ prompt, up to where the answer begins │ answer │ end of turn
    plain text ─────────────────────────────▶ itself

A template's special tokens are tokens; "<|im_end|>" in what somebody wrote is ten characters. Such a text stands
between two marks ("\\0", which no row may hold), and a writer's tokenizer takes what lies between them as text.
"""

import codecs
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from ..backbones.adapters import Writing
from ..backbones.formats import opening
from ..errors import DamagedFile, UserError
from ..text import Document
from . import SENTENCES
from .rows import Row

MARK, UNKNOWN = "\0", "\N{REPLACEMENT CHARACTER}"
# Settings of generation that change what is continued greedily ─▶ the value that changes nothing.
GREEDY = SENTENCES["greedy"]
PROBE = "xyzzy"  # an answer whose place in a rendered chat is found again


@dataclass(frozen=True)
class Dialogue(Document):
    """A document whose prompt is a conversation: `turns` are a JSON list of [role, content]."""

    turns: str = ""


def document_of(row: Row, name: str) -> Document:
    """A row as a document of that name."""
    fields = (name, row.text, row.group, row.prompt, row.instruction)
    return Dialogue(*fields, row.turns) if row.turns else Document(*fields)


class Writer:
    """A tokenizer as text.py and score.py call it, which begins, renders and marks texts as an adapter's `how` says."""

    def __init__(self, tokenizer, how: Writing) -> None:
        """Raises DamagedFile for a first token that the tokenizer lacks, UserError where there is no template."""
        self.tokenizer, self.how = tokenizer, how
        self.plain = how.special and not how.chat  # texts are tokenised as they stand, without marks
        self.is_fast = getattr(tokenizer, "is_fast", False)
        self.pad_token_id, self.eos_token_id = tokenizer.pad_token_id, tokenizer.eos_token_id
        if how.bos and how.bos not in tokenizer.get_vocab():
            raise DamagedFile(f"first token {how.bos!r} is none of the tokenizer's: fit the adapter again")
        first = [tokenizer.get_vocab()[how.bos]] if how.bos else []
        self.first = opening(tokenizer) if how.bos is None else first
        self.bos_token_id = self.first[0] if self.first else None
        if how.chat and not template_of(tokenizer):
            raise UserError("the model's tokenizer has no chat template: choose --chat off")

    @cached_property
    def special(self) -> re.Pattern:
        """Finds what the tokenizer takes for a special token; nothing where it has none."""
        added = self.tokenizer.added_tokens_decoder.values()
        names = {token.content for token in added if token.special} | set(self.tokenizer.all_special_tokens)
        names -= {""}
        return re.compile("|".join(map(re.escape, sorted(names, key=len, reverse=True))) or r"(?!)")

    @cached_property
    def end(self) -> str:
        """What follows a learnt answer: the template's end of a turn, up to its first special token, or end-of-text."""
        if self.how.chat:
            turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": PROBE}]
            _, answer, after = self._render(turns, False).rpartition(PROBE)
            if answer and (found := self.special.search(after)):
                return after[: found.end()]
        return self.tokenizer.eos_token or ""

    @property
    def facts(self) -> dict:
        """What is written otherwise than adapters were before they kept it: {} for those."""
        return self.how.model_dump(include=set(self.how.unwritten))

    def ends(self, known: int | list[int] | None) -> list[int]:
        """The tokens after which a continuation stops: those `known` to the model, and what was learnt as an end."""
        ends = known if isinstance(known, list) else [] if known is None else [known]
        learnt = self.tokenizer(self.end, add_special_tokens=False)["input_ids"][-1:] if self.end else []
        return [*ends, *(token for token in learnt if token not in ends)]

    def document(self, document: Document, *, end: bool = False) -> Document:
        """A document as it is tokenised, an answer with its end if `end`; UserError where a template refuses it."""
        prompt, text = self.marked(document.prompt), self.marked(document.text)
        if prompt and self.how.chat:
            said = [{"role": self.marked(r), "content": self.marked(c)} for r, c in turns_of(document)]
            prompt = self._render(said, True)
            if self.first:  # some templates write it themselves
                prompt = prompt.removeprefix(self.tokenizer.convert_ids_to_tokens(self.first[0]))
        return replace(document, prompt=prompt, text=text + (self.end if end and prompt else ""))

    def marked(self, text: str) -> str:
        """A text as it is, between marks where it holds what looks like a special token and is text."""
        if self.plain:
            return text
        text = text.replace(MARK, UNKNOWN)
        return f"{MARK}{text}{MARK}" if not self.how.special and self.special.search(text) else text

    def _render(self, turns: list[dict[str, str]], prompt: bool) -> str:
        try:
            return self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=prompt)
        except Exception as error:  # a template is a program of its own, and may raise anything
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise UserError(f"the model's chat template refuses it: {reason}") from None

    def __call__(self, texts: Sequence[str] | str, **options) -> dict:
        """Token ids, and spans of characters where they are wanted, of texts with or without marks."""
        if isinstance(texts, str):  # what is put before a text, as `opening` looks for it
            return {"input_ids": self.first}
        if self.plain or not any(MARK in text for text in texts):
            return self.tokenizer(list(texts), **options)
        pieces = [(n, i % 2, piece) for n, t in enumerate(texts) for i, piece in enumerate(t.split(MARK))]
        spans = self.is_fast and options.get("return_offsets_mapping", False)
        found = {}
        for text in (0, 1):  # pieces between marks are the odd ones
            chosen = [piece for _, odd, piece in pieces if odd == text]
            given = options if not text else options | {"split_special_tokens": True}
            made = self.tokenizer(chosen, **given) if chosen else {"input_ids": [], "offset_mapping": []}
            found[text] = zip(made["input_ids"], made["offset_mapping"] if spans else [()] * len(chosen))
        ids, places, starts = [[] for _ in texts], [[] for _ in texts], [0] * len(texts)
        for n, odd, piece in pieces:
            new, where = next(found[odd])
            ids[n] += new
            places[n] += [(starts[n] + a, starts[n] + b) for a, b in where]
            starts[n] += len(piece) + len(MARK)
        return {"input_ids": ids} | ({"offset_mapping": places} if spans else {})


def template_of(tokenizer) -> str | None:
    """The tokenizer's chat template, None without one; UserError for several of which none is the default."""
    template = getattr(tokenizer, "chat_template", None)
    if isinstance(template, dict) and template:
        if "default" not in template:
            found = f"several chat templates ({', '.join(sorted(template))})"
            raise UserError(f"the model has {found} and no default: choose --chat off")
        return template["default"]
    return template or None


def turns_of(document: Document) -> list[tuple[str, str]]:
    """What was said before the answer: the turns of a dialogue, else the prompt, without Alpaca's frame, by a user."""
    if turns := getattr(document, "turns", ""):
        return [(role, content) for role, content in json.loads(turns)]
    frame = re.escape(f"### Instruction:\n{document.instruction}\n\n")
    frame += r"(?:### Input:\n(.*)\n\n)?### Response:\n"
    if document.instruction and (found := re.fullmatch(frame, document.prompt, re.DOTALL)):
        return [("user", "\n\n".join(filter(None, (document.instruction, found[1]))))]
    return [("user", document.prompt)]


def whole_characters(tokenizer, tokens: Sequence[int]) -> str:
    """New tokens as text, without the bytes of a last character that is not complete."""
    text, last = tokenizer.decode(tokens, skip_special_tokens=True), b""
    if not text.endswith(UNKNOWN):
        return text
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    values = {symbol: value for value, symbol in bytes_to_unicode().items()}
    for name in tokenizer.convert_ids_to_tokens(list(tokens[-4:])):  # symbols of bytes, or <0xF0>
        spelled = re.fullmatch(r"<0x([0-9A-F]{2})>", name)
        symbols = bytes(values[c] for c in name) if values.keys() >= set(name) else name.encode()
        last += bytes.fromhex(spelled[1]) if spelled else symbols
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    decoder.decode(last)
    return text.rstrip(UNKNOWN) if decoder.getstate()[0] else text


def unused_settings(lm) -> str:
    """What a model's own settings of generation would change of greedy continuations, as "name value, …"."""
    own = getattr(lm, "generation_config", None)
    values = {name: getattr(own, name, None) for name in GREEDY}
    return ", ".join(f"{name} {x}" for name, x in values.items() if x not in (None, [], GREEDY[name]))


def tail(text: str, length: int) -> str:
    """The last characters of a text, which stay between marks where they were."""
    cut = max(0, len(text) - length)
    return MARK * (text.count(MARK, 0, cut) % 2) + text[cut:]
