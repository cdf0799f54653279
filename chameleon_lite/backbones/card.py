"""The model card of what is saved: what it was made from and on, what it measured, how it is loaded.

    settings, notes of `fit` ─┬▶ README.md of the folder, as model hubs show it; its sentences lie in card.yaml
    backbone and its licence ─┘

No text of the data, no place on a machine: of a backbone from a folder the card gives kind, size and checksum.
"""

import json
import re
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path

import yaml

from .formats import opening

SMOLLM2 = "HuggingFaceTB/SmolLM2-135M-Instruct"
SETTINGS = ("head", "rank", "scale", "clusters", "condition", "lora_rank", "lora_alpha", "prompts")
MARK = "\n- chameleon-lite\n"  # a tag of every card of ours


@cache
def words() -> dict:
    """The card's sentences."""
    return yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))


def write_card(model, folder: Path, target: Path, kind: str = "adapter", **more) -> None:
    """Write README.md to `folder`, whose files will go to `target`, unless one of somebody else lies there.

    model: a ChameleonLiteForCausalLM; kind: "adapter", "peft" or "merged"; more: see `card`.
    """
    there = target / "README.md"
    if not there.exists() or MARK in there.read_text("utf-8", errors="replace")[:1_000]:
        (folder / "README.md").write_text(card(model, kind, **more), encoding="utf-8")


def card(model, kind: str = "adapter", *, what: str = "", limits: Sequence[str] = (), use: str = "") -> str:
    """The card's text. what: which update this is; limits: more of them; use: the name of another way to load it."""
    config, backbone, text = model.config, model.backbone, words()
    base = SMOLLM2 if backbone.name == "smollm2" else hub_id(backbone)
    settings = {name: getattr(config, name) for name in SETTINGS}
    with suppress(KeyError, AttributeError):  # of an adapter that was not made by `fit`
        settings |= {f"fit.{name}": value for name, value in config.notes["settings"].items()}
    first = text["limits"]["large" if kind == "merged" else "weights"].format(hash=backbone.hash[:12])
    written = () if kind == "adapter" else _written(config.prompts)
    fields = {
        "header": (f"base_model: {base}\n" if base else "") + f"library_name: {text['libraries'][kind]}",
        "title": f"{'A model from' if kind == 'merged' else 'An adapter for'} {_name(backbone)}",
        "kind": f"{text['kinds'][kind]} {what}".strip(),
        "backbone": _backbone(backbone),
        "licence": licence(backbone),
        "data": _data(config.notes),
        "measured": _measured(config.notes, bool(what) and model.head.conditioned),
        "settings": "\n".join(f"{n}: {json.dumps(x)}" for n, x in settings.items()).replace("`", "'"),
        "limits": "\n".join(f"- {limit}" for limit in [first, text["limits"]["kind"], *written, *limits]),
        "use": text["use"][use or kind].format(**_place(backbone), **_cut(model)),
    }
    return text["card"].format(**fields)


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
    return "see the backbone"


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


def _written(prompts: Mapping) -> list[str]:
    """How texts were written for the model, which whoever loads this elsewhere has to do alike."""
    limits, first = words()["limits"], prompts.get("bos")
    lines = [limits["chat"]] if prompts.get("chat") else []
    return lines if first is None else [*lines, limits["bos" if first else "no_bos"].format(bos=first)]


def _cut(model) -> dict[str, str]:
    """The same in code: a text's first token, and the line that makes a chat of it."""
    first, line = model.config.prompts.get("bos"), words()["chat"]
    if first is None:
        first = "".join(model.tokenizer.convert_ids_to_tokens(opening(model.tokenizer)))
    return {"bos": json.dumps(first), "chat": line * bool(model.config.prompts.get("chat"))}


def _backbone(backbone) -> str:
    """The backbone by name, size and revision."""
    text = f"{_name(backbone)}, {backbone.parameters:,} parameters"
    text += f", revision {backbone.revision}" if backbone.revision else ""
    return text + (words()["smollm2"].format(base=SMOLLM2) if backbone.name == "smollm2" else "")


def _data(notes: Mapping) -> str:
    """Name, checksum and counts of what an adapter was fitted on; no text of it."""
    with suppress(KeyError, TypeError, ValueError):
        known = {"name": _plain(notes["corpus"]), "hash": str(notes["corpus_hash"])[:12]}
        return words()["data"].format(**notes | known)
    return words()["unknown"]


def _measured(notes: Mapping, one_of_many: bool) -> str:
    """What `fit` measured on held-out texts, and what it chose from."""
    text = words()
    with suppress(KeyError, TypeError, ValueError):
        found = text["measured"].format(**notes | {"change": notes["after"] - notes["before"]})
        found += f" {text['one_of_many']}" if one_of_many else ""
        if len(tried := notes.get("candidates", ())) > 1:
            marks = [
                {"name": _plain(one["candidate"]), "mark": " (kept)" * bool(one["kept"])} for one in tried
            ]
            found += "\n".join(
                [text["tried"], *(text["candidate"].format(**one | m) for one, m in zip(tried, marks))]
            )
        return found
    return text["unknown"]


def _plain(name: object) -> str:
    """A name from somewhere, without what would be markup."""
    return re.sub(r"[^\w.,+-]+", " ", str(name))[:80].strip()
