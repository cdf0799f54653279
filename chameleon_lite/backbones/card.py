"""The model card of what is saved: what it was made from and on, what it measured, how it is loaded.

    settings, notes of `fit` ─┬▶ README.md of the folder, as model hubs show it; its sentences lie in card.jinja
    backbone and its licence ─┘

No text of the data, no place on a machine: of a backbone from a folder the card gives kind, size and checksum.
"""

import json
import re
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path

from .formats import opening

SMOLLM2 = "HuggingFaceTB/SmolLM2-135M-Instruct"
MARK = "\n- chameleon-lite\n"  # a tag of every card of ours


def write_card(model, folder: Path, target: Path, kind: str = "adapter", **more) -> None:
    """Write README.md to `folder`, whose files will go to `target`, unless one of somebody else lies there.

    model: a ChameleonLiteForCausalLM; kind: "adapter", "peft" or "merged"; more: see `card`.
    """
    there = target / "README.md"
    if not there.exists() or MARK in there.read_text("utf-8", errors="replace")[:1_000]:
        (folder / "README.md").write_text(card(model, kind, **more), encoding="utf-8")


def card(model, kind: str = "adapter", *, what: str = "", limits: Sequence[str] = (), use: str = "") -> str:
    """The card's text. what: which update this is; limits: more of them; use: the name of another way to load it."""
    backbone, first = model.backbone, model.config.prompts.get("bos")
    hub, packaged, own = hub_id(backbone), backbone.name == "smollm2", Path(backbone.name).expanduser()
    name = hub or (f"a {backbone.lm.config.model_type} model" if own.is_dir() else backbone.name)
    if first is None:
        first = "".join(model.tokenizer.convert_ids_to_tokens(opening(model.tokenizer)))
    facts = {"model": model, "kind": kind, "what": what, "limits": limits, "use": use or kind, "first": first}
    facts |= {"name": "SmolLM2-135M-Instruct (4 bits)" if packaged else name, "licence": licence(backbone)}
    return template(__file__).render(facts, hub=hub, packaged=packaged, smollm2=SMOLLM2)


@cache
def template(file: str):
    """The Jinja template of that file's name beside it."""
    from jinja2 import Environment

    environment = Environment(trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)
    environment.filters |= {"json": json.dumps, "plain": _plain}
    return environment.from_string(Path(file).with_suffix(".jinja").read_text(encoding="utf-8"))


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
    model, repo_id: str, *, commit_message=None, private=None, token=None, revision=None, create_pr=False, **_
) -> str:
    """Save an adapter to a repository of the model hub, with its card, and give the commit's address.

    Arguments as of transformers' own, which would replace the card by an empty one. A backbone that is a folder here
    is named by the folder's last part: whoever loads the adapter gives theirs, `from_pretrained(…, backbone=…)`.
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


def _plain(name: object) -> str:
    """A name from somewhere, without what would be markup."""
    return re.sub(r"[^\w.,+-]+", " ", str(name))[:80].strip()
