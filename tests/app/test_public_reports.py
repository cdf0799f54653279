"""What people reported of other programs for this work, tried on this one; each report is a kind, named in own words.

Inputs that belong to another file's tests lie there: weights that are a pointer or cut, tokenizers of newer libraries,
odd rows (test_bad_rows, test_model_files, test_adapter_folders), outputs (test_outputs), pads beyond the embedding.
"""

import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from chameleon_lite import adapt
from chameleon_lite.app.fit_settings import FitSettings
from chameleon_lite.app.parts import corpus_of, parts_of
from chameleon_lite.backbone import load_backbone
from chameleon_lite.backbones.formats import opening
from chameleon_lite.backbones.tiny import byte_tokenizer
from chameleon_lite.chameleon import ChameleonLiteForCausalLM
from chameleon_lite.text import Document, tokenise

ROOT = Path(__file__).parents[2]
TEXT = "a text that is long enough to be scored, and more"
ENGLISH = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}  # a machine whose texts are ASCII


@pytest.fixture
def begun(model_folder):
    """A backbone whose tokenizer puts a token, number 1, before every text."""
    from tokenizers.processors import TemplateProcessing

    tokenizer = byte_tokenizer(128)
    name = tokenizer.convert_ids_to_tokens(1)
    template = TemplateProcessing(single=f"{name} $A", special_tokens=[(name, 1)])
    tokenizer.backend_tokenizer.post_processor, tokenizer.bos_token = template, name
    tokenizer.save_pretrained(model_folder)
    return load_backbone(str(model_folder))


def frozen(backbone, ids: list[int], scored: int) -> float:
    """The loss of the last `scored` ids after the others, in nats per token."""
    logits = backbone.lm(torch.tensor([ids])).logits[0]
    return F.cross_entropy(logits[-scored - 1 : -1], torch.tensor(ids[-scored:])).item()


def test_a_model_that_needs_a_first_token_is_scored_with_it(begun, tiny):
    assert opening(begun.tokenizer) == [1] and opening(tiny.tokenizer) == []
    model = ChameleonLiteForCausalLM.from_backbone(begun)
    rows = [TEXT, {"prompt": "Say: ", "response": TEXT}]
    cut = model.config.prompts.get("prefix_tokens", 16)
    found = [row["loss_frozen"] for row in adapt(model, rows)]
    ids, asked = list(TEXT.encode()), list(b"Say: ")
    assert found[0] == pytest.approx(frozen(begun, [1, *ids], len(ids) - cut), rel=1e-5)
    assert found[1] == pytest.approx(frozen(begun, [1, *asked, *ids], len(ids)), rel=1e-5)
    assert found[0] != pytest.approx(frozen(begun, ids, len(ids) - cut), rel=1e-3)
    (row,) = adapt(model, ["Say: "], new_tokens=5)
    how = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    new = begun.lm.generate(input_ids=torch.tensor([[1, *asked]]), **how)[0, len(asked) + 1 :]
    assert row["continuation"] == begun.tokenizer.decode(new)


def test_the_first_token_takes_its_place_of_a_full_row(begun):
    documents = [Document("a", "x" * 200), Document("b", "y" * 200, prompt="z" * 200, instruction="z" * 9)]
    table = tokenise(documents, begun.tokenizer, max_length=64, condition_on="instruction")
    assert table.lengths.tolist() == [64, 64] and (table.ids[table.offsets[:-1]] == 1).all()
    assert table.prefix.tolist() == [17, 56] and table.scored_bytes.tolist() == [47, 8]
    assert table.condition.tolist() == [[0, 17], [0, 56]]
    model = ChameleonLiteForCausalLM.from_backbone(begun, prompts={"max_length": 64})
    flags = [row["truncated"] for row in adapt(model, ["x" * 63, "x" * 64])]
    assert flags == [False, True]
    assert adapt(model, ["x" * 127], new_tokens=3)[0]["truncated"]


def test_the_end_of_a_response_is_learnt_and_is_no_part_of_the_comparison(tiny, two_kinds):
    end = tiny.tokenizer.eos_token_id
    rows = [{"prompt": "Say: ", "response": text} for text in two_kinds(60)]
    parts, _ = parts_of(corpus_of(rows), tiny, FitSettings())
    assert {split: int((table.ids == end).sum()) for split, table in parts.tables.items()} == {
        "train": len(parts.tables["train"]),
        "validation": 0,
        "test": 0,
    }
    ends = parts.tables["train"].ids[parts.tables["train"].offsets[1:] - 1]
    assert (ends == end).all()
    parts, _ = parts_of(corpus_of(two_kinds(60)), tiny, FitSettings())  # plain text goes on
    assert not (parts.tables["train"].ids == end).any()


def test_marks_of_a_text_that_look_like_the_end_are_text(tiny):
    model = ChameleonLiteForCausalLM.from_backbone(tiny)
    mark = tiny.tokenizer.eos_token
    text = f"it says {mark} in the middle of a text, {mark} and goes on"
    ids = tiny.tokenizer(text)["input_ids"]
    (row,) = adapt(model, [text])
    assert row["loss_frozen"] == pytest.approx(frozen(tiny, ids, len(ids) - 16), rel=1e-5)
    prompts = [text, "short", f"{mark}{mark} two at the beginning"]
    together, alone = (adapt(model, prompts, new_tokens=6, batch=batch) for batch in (32, 1))
    assert [r["continuation"] for r in together] == [r["continuation"] for r in alone]
    assert all(r["tokens"] for r in together)


@pytest.mark.parametrize("group", [[0, 7], [0, -1], [3, 3], [0], [0, 1, 2, 0]])
def test_a_row_of_a_group_without_an_update_is_refused(adapter, group):
    ids = torch.arange(40, 60)[None].repeat(2, 1)
    how = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 3}
    with pytest.raises(ValueError, match="lie in 0 … 2"):
        adapter.generate(input_ids=ids, condition=adapter.centroids, group=torch.tensor(group), **how)


FORMATS = {  # name -> content, what is said
    "rows.parquet": (b"PAR1\0", "rows.parquet is no whole .parquet", "rows.parquet is no whole .parquet"),
    "rows.jsonl.gz": (
        b"\x1f\x8b\x08\0rest",
        "rows.jsonl.gz is a damaged .gz",
        "rows.jsonl.gz is a damaged .gz",
    ),
    "rows.jsonl": (b"PAR1\0", "is parquet: let its name end in .parquet", "is parquet"),
    "rows.arrow": (b"ARROW1\0\0", "cannot read rows.arrow", "no row of"),
    "rows.xlsx": (b"PK\x03\x04", "cannot read rows.xlsx", "no row of"),
    "rows": (b"hello\n", "cannot read rows", "no row of"),
    "pipe": (None, "cannot read pipe", "no file or folder at pipe"),
}


@pytest.mark.parametrize("name", FORMATS)
def test_a_file_of_a_format_that_is_not_read_is_named(name, refused, adapter_folder):
    content, of_fit, of_adapt = FORMATS[name]
    os.mkfifo(name) if content is None else Path(name).write_bytes(content)
    refused("fit", f"./{name}", "--backbone", "tiny", "--out", "a", says=of_fit)
    code = 1 if "no row" in of_adapt else 2
    refused("adapt", name, "--model", adapter_folder, "--out", "o.jsonl", says=of_adapt, code=code)


def test_texts_that_begin_alike_are_fitted_as_any(command, two_kinds):
    rows = [{"text": f"the same first words of all: {text}"} for text in two_kinds(60)]
    Path("in.jsonl").write_text("\n".join(map(json.dumps, rows)))
    code, out, err = command("fit", "in.jsonl", "--backbone", "tiny", "--out", "a", "--epochs", "1")
    assert code == 0 and "nats per token before" in out, err


@pytest.fixture
def cached_adapter(adapter_folder, tmp_path):
    """The hub's local cache with the adapter me/adapter in it."""
    place = tmp_path / "hub" / "models--me--adapter"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text("0" * 40)
    (place / "snapshots").mkdir()
    (place / "snapshots" / ("0" * 40)).symlink_to(adapter_folder)
    return tmp_path / "hub"


def test_an_adapter_in_the_hubs_cache_needs_no_network(cached_adapter, source, command, refused, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cached_adapter))
    for word in ("1", "true"):
        monkeypatch.setenv("HF_HUB_OFFLINE", word)
        assert command("adapt", source, "--model", "me/adapter", "--out", "o.jsonl")[0] == 0
        refused("adapt", source, "--model", "me/adaptor", "--out", "o.jsonl", says="me/adaptor is no saved")


class Absent(BaseHTTPRequestHandler):
    """A hub that has nothing."""

    def do_GET(self):  # noqa: N802  (the library's name)
        self.send_error(404)

    do_HEAD = do_GET

    def log_message(self, *_):
        pass


def test_an_adapter_that_the_hub_does_not_have_is_one_line(tmp_path):
    server = HTTPServer(("127.0.0.1", 0), Absent)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    (tmp_path / "in.jsonl").write_text(json.dumps(TEXT))
    words = [sys.executable, "-m", "chameleon_lite", "adapt", "in.jsonl", "--model", "adapters/typo"]
    own = {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HUB_OFFLINE": "0"}
    own |= {"HF_HUB_CACHE": str(tmp_path / "hub"), "PYTHONPATH": str(ROOT), "no_proxy": "*"}
    environment = {k: v for k, v in os.environ.items() if not k.lower().endswith("s_proxy")} | own
    words += ["--out", "o.jsonl"]
    found = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    server.shutdown()
    server.server_close()
    assert found.returncode == 2 and "adapters/typo is no saved adapter" in found.stderr, found.stderr
    assert len(found.stderr.splitlines()) == 1


def test_texts_in_any_writing_on_a_machine_whose_own_is_ascii(two_kinds, tmp_path):
    rows = [
        {"id": f"№{n}–▶", "text": f"{text} · ≥ − ü 漢字 😀", "group": "▶"}
        for n, text in enumerate(two_kinds(60))
    ]
    lines = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    (tmp_path / "in.jsonl").write_text(lines, encoding="utf-8")
    small = {"name": "small", "corpora": ["c.jsonl"], "regimes": ["R0"], "what": "ü ▶"}
    (tmp_path / "small.yaml").write_text(json.dumps(small, ensure_ascii=False), encoding="utf-8")
    code = """
import sys
from chameleon_lite.app.cli import main
for words in ("corpus in.jsonl --out c.jsonl", "fit c.jsonl --backbone tiny --out a --epochs 1 --device cpu",
              "adapt c.jsonl --model a --out o.jsonl --device cpu", "claims --help",
              "run small.yaml --backbone tiny --out runs --device cpu --profile paper --seeds 1"):
    main(words.split())
from pathlib import Path
from chameleon_study import records
records.REFUSED_BACKBONES = ("none",)
records.pack("small", [p.name for p in Path("runs").glob("R0*")], Path("runs"), Path("results"))
main(["tables", "--results", "results"])
print(sys.stdout.encoding, open(1, closefd=False).encoding)
"""
    environment = (
        os.environ | ENGLISH | {"PYTHONPATH": str(ROOT), "CHAMELEON_LITE_HOME": str(tmp_path / "home")}
    )
    options = {"cwd": tmp_path, "env": environment, "capture_output": True, "timeout": 300}
    found = subprocess.run([sys.executable, "-c", code], **options)
    assert found.returncode == 0, found.stderr.decode(errors="replace")[-2_000:]
    assert "UTF-8" not in found.stdout.decode().splitlines()[-1].upper()
    results = [json.loads(line) for line in (tmp_path / "o.jsonl").read_text(encoding="utf-8").splitlines()]
    assert {row["id"] for row in results} == {row["id"] for row in rows}


def test_the_oldest_typer_that_may_be_installed_shows_help_beside_any_click():
    import tomllib

    from packaging.requirements import Requirement

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (typer,) = (r for r in map(Requirement, project["dependencies"]) if r.name == "typer")
    # 0.15 calls what click 8.2 has changed: a TypeError for every --help
    assert not typer.specifier.contains("0.15.4") and typer.specifier.contains("0.16.0")
