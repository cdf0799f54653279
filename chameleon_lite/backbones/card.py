"""The model card of what is saved: what it was made from and on, what it measured, how it is loaded.

    settings, notes of `fit` ─┬▶ README.md of the folder, as model hubs show it
    backbone and its licence ─┘

No text of the data, no place on a machine: of a backbone from a folder the card gives kind, size and checksum.
"""

import json
import re
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from string import Template

SMOLLM2 = "HuggingFaceTB/SmolLM2-135M-Instruct"
UNKNOWN = "see the backbone"
LIBRARIES = {"adapter": "chameleon-lite", "peft": "peft", "merged": "transformers"}
KINDS = {  # what lies in the folder
    "adapter": "An adapter of chameleon-lite: it changes the output head of a frozen language model.",
    "peft": "An adapter in PEFT's layout: low-rank factors for the output head of a frozen language model.",
    "merged": "A plain language model, with the update of an adapter added to its output head.",
}
USE = {
    "adapter": """```
chameleon-lite adapt texts.jsonl --model FOLDER --out results.jsonl
chameleon-lite export FOLDER --out peft-folder
```

```python
from chameleon_lite import ChameleonLiteForCausalLM, adapt

model = ChameleonLiteForCausalLM.from_pretrained("FOLDER")
results = adapt(model, ["a text", "another"])
```

FOLDER may be a hub id. The second command writes what PEFT, vLLM and others load.""",
    "peft": """```python
from peft import PeftModel
from transformers import AutoModelForCausalLM

base = AutoModelForCausalLM.from_pretrained($base)
model = PeftModel.from_pretrained(base, "FOLDER")
```

$where""",
    "merged": """```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("FOLDER")
tokenizer = AutoTokenizer.from_pretrained("FOLDER")
```""",
}
CARD = """---
$header
---

# $title

$kind

## Backbone

$backbone. Licence: $licence.

## Data

$data

## What was measured

$measured

## Settings

```
$settings
```

## Limits

$limits

## How to load it

$use
"""


def write_card(model, folder: Path, target: Path, kind: str = "adapter", **more) -> None:
    """Write README.md to `folder`, whose files will go to `target`, unless one of somebody else lies there.

    model: a ChameleonLiteForCausalLM; kind: "adapter", "peft" or "merged"; more: see `card`.
    """
    there = target / "README.md"
    if not there.exists() or "\n- chameleon-lite\n" in there.read_text("utf-8", errors="replace")[:1_000]:
        (folder / "README.md").write_text(card(model, kind, **more), encoding="utf-8")


def card(model, kind: str = "adapter", *, what: str = "", limits: Sequence[str] = (), use: str = "") -> str:
    """The card's text. what: which update this is; limits, use: what to add to, or to say in, those two sections."""
    config, backbone = model.config, model.backbone
    own = ["rank", "scale", "clusters", "condition", "lora_rank", "lora_alpha", "prompts"]
    settings = {name: getattr(config, name) for name in ["head", *own]}
    with suppress(KeyError, AttributeError):  # of an adapter that was not made by `fit`
        settings |= {f"fit.{name}": value for name, value in config.notes["settings"].items()}
    of_kind = [f"It fits this backbone's weights alone (sha256 {backbone.hash[:12]}…)."]
    if kind == "merged":
        of_kind = ["It is as large as the backbone."]
    of_kind += [
        "The numbers hold for texts like those it was fitted on. Nothing else was tested: whatever the"
    ]
    of_kind[-1] += " backbone does wrong, this may do too."
    fields = {
        "header": _header(backbone, kind),
        "title": f"{'A model from' if kind == 'merged' else 'An adapter for'} {_name(backbone)}",
        "kind": f"{KINDS[kind]} {what}".strip(),
        "backbone": _backbone(backbone),
        "licence": licence(backbone),
        "data": _data(config.notes),
        "measured": _measured(config.notes, bool(what) and model.head.conditioned),
        "settings": "\n".join(f"{n}: {json.dumps(x)}" for n, x in settings.items()).replace("`", "'"),
        "limits": "\n".join(f"- {limit}" for limit in [*of_kind, *limits]),
        "use": Template(use or USE[kind]).substitute(_place(backbone)),
    }
    return Template(CARD).substitute(fields)


def hub_id(backbone) -> str | None:
    """The id on the model hub of a backbone that comes from there; None for any other."""
    name, own = backbone.lm.config._name_or_path, Path(backbone.name).expanduser()
    here = backbone.name == "smollm2" or own.is_dir()
    return name if re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not here else None


def licence(backbone) -> str:
    """The licence that the backbone's own card names, where that lies on this machine."""
    from huggingface_hub import metadata_load, try_to_load_from_cache

    if backbone.name == "smollm2":
        return "apache-2.0"
    path = Path(backbone.name).expanduser() / "README.md"
    if name := hub_id(backbone):
        path = try_to_load_from_cache(name, "README.md", revision=backbone.revision or None)
    with suppress(Exception):  # absent, or whatever else somebody wrote into it
        named = metadata_load(path)["license"]
        if re.fullmatch(r"[\w.+-]{1,40}", named):
            return named
    return UNKNOWN


def push_to_hub(
    model,
    repo_id: str,
    *,
    commit_message: str | None = None,
    private: bool | None = None,
    token: bool | str | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    **_,
) -> str:
    """Save an adapter to a repository of the model hub, with its card, and give the commit's address.

    As transformers' own, which would replace the card by an empty one. A backbone that is a folder here is named
    by the folder's last part: whoever loads the adapter gives theirs, `from_pretrained(…, backbone=…)`.
    """
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        path = Path(folder) / "config.json"
        content = json.loads(path.read_bytes())
        if content["backbone_name"].startswith((".", "~")):
            content["backbone_name"] = Path(content["backbone_name"]).name
            path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        how = {"commit_message": commit_message or "Upload adapter", "create_pr": create_pr}
        return api.upload_folder(repo_id=repo_id, folder_path=folder, revision=revision, **how)


def _header(backbone, kind: str) -> str:
    """The card's YAML: what a hub sorts by."""
    base = SMOLLM2 if backbone.name == "smollm2" else hub_id(backbone)
    lines = [f"base_model: {base}"] if base else []
    lines += [f"library_name: {LIBRARIES[kind]}", "pipeline_tag: text-generation", "tags:"]
    return "\n".join([*lines, "- chameleon-lite", "- lora"])


def _name(backbone) -> str:
    """How the backbone is called where no folder must be named."""
    if backbone.name == "smollm2":
        return "SmolLM2-135M-Instruct (4 bits)"
    folder = Path(backbone.name).expanduser().is_dir()
    return f"a {backbone.lm.config.model_type} model" if folder else hub_id(backbone) or backbone.name


def _place(backbone) -> dict[str, str]:
    """How the backbone is named in code, and where that is."""
    if name := hub_id(backbone):
        revision = f', revision="{backbone.revision}"' if backbone.revision else ""
        return {"base": f'"{name}"{revision}', "where": ""}
    printed = (
        "that `chameleon-lite fetch smollm2` prints" if backbone.name == "smollm2" else "of the backbone"
    )
    return {"base": '"BACKBONE"', "where": f"BACKBONE is the folder {printed}."}


def _backbone(backbone) -> str:
    """The backbone by name, size and revision."""
    text = f"{_name(backbone)}, {backbone.parameters:,} parameters"
    if backbone.revision:
        text += f", revision {backbone.revision}"
    if backbone.name == "smollm2":
        text += (
            f": the Q4_1 weights that `chameleon-lite fetch smollm2` unpacks, not those of {SMOLLM2} itself"
        )
    return text


def _data(notes: Mapping) -> str:
    """Name, checksum and counts of what an adapter was fitted on; no text of it."""
    with suppress(KeyError, TypeError, ValueError):
        name = re.sub(r"[^\w.+-]+", " ", str(notes["corpus"]))[:80].strip()
        text = (
            f"{name} (sha256 {str(notes['corpus_hash'])[:12]}…): {notes['trained_on']:,} texts to train on, "
        )
        return text + f"{notes['held_out']:,} others to measure with."
    return "Not known: this adapter was not made by `fit`."


def _measured(notes: Mapping, one_of_many: bool) -> str:
    with suppress(KeyError, TypeError, ValueError):
        change = notes["after"] - notes["before"]
        text = f"On {notes['held_out']:,} held-out texts, nats per token: {notes['before']:.4f} for the backbone, "
        text += f"{notes['after']:.4f} with the adapter ({change:+.4f}; 95 % interval {notes['low']:+.4f} to "
        text += f"{notes['high']:+.4f}, by resampling those texts)."
        if one_of_many:
            text += " That is with an update for each group of texts, as `chameleon-lite adapt` makes them; the one"
            text += " kept here was not measured by itself."
        return text + _tried(notes.get("candidates", ()))
    return "Nothing: this adapter was not made by `fit`."


def _tried(candidates: Sequence[Mapping]) -> str:
    """A table of what `fit` chose from; "" where there was no choice."""
    if len(candidates) < 2:
        return ""
    rows = [
        "\n\nChosen on validation texts, from:\n",
        "| candidate | nats per token | parameters |",
        "|---|---|---|",
    ]
    for one in candidates:
        name = re.sub(r"[^\w.,+-]+", " ", str(one["candidate"]))[:80]
        rows.append(f"| {name}{' (kept)' * bool(one['kept'])} | {one['after']:.4f} | {one['parameters']:,} |")
    return "\n".join(rows)
