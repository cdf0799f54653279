"""A model hub of our own over HTTP, with the real client: an adapter goes up, comes back, and is found offline."""

import base64
import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from chameleon_lite.backbone import load_backbone
from chameleon_lite.chameleon import ChameleonLiteForCausalLM

pytestmark = pytest.mark.one_form
ROOT = Path(__file__).parents[2]


class Hub(BaseHTTPRequestHandler):
    """As much of a model hub's interface as its client uses to write a repository and to read it back."""

    protocol_version = "HTTP/1.1"
    files: dict[str, bytes]
    requests: list[tuple[str, str]]
    created: list[dict]

    def answer(self, content, code: int = 200, head: bool = False, **headers) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if not head:
            self.wfile.write(data)

    def do_POST(self):  # noqa: N802  (the library's names)
        body = self.rfile.read(int(self.headers["Content-Length"]))
        path = self.path.split("?")[0]
        self.requests.append((path, self.headers.get("authorization", "")))
        if path == "/api/repos/create":
            self.created.append(json.loads(body))
            self.answer({"url": f"http://{self.headers['host']}/me/adapter", "name": "me/adapter"})
        elif path == "/api/validate-yaml":
            self.answer({"errors": [], "warnings": []})
        elif path.endswith("/preupload/main"):
            names = [file["path"] for file in json.loads(body)["files"]]
            modes = [{"path": n, "uploadMode": "regular", "shouldIgnore": False} for n in names]
            self.answer({"files": modes})
        elif path.endswith("/commit/main"):
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            address = f"http://{self.headers['host']}/me/adapter/commit/{self.commit}"
            self.answer({"commitUrl": address, "commitOid": self.commit, "pullRequestUrl": ""})
        else:
            self.answer({}, 404)

    @property
    def commit(self) -> str:
        return hashlib.sha1(repr(sorted(self.files.items())).encode()).hexdigest()

    def do_GET(self, head: bool = False):  # noqa: N802
        path = self.path.split("?")[0]
        self.requests.append((path, self.headers.get("authorization", "")))
        name = path.split("/resolve/")[-1].partition("/")[2]
        if path.startswith("/api/models/me/adapter"):
            siblings = [{"rfilename": name} for name in self.files]
            if path.endswith(("/tree/main", f"/tree/{self.commit}")):
                rows = [
                    {"type": "file", "path": n, "size": len(x), "oid": "0"} for n, x in self.files.items()
                ]
                return self.answer(rows, head=head)
            about = {"id": "me/adapter", "modelId": "me/adapter", "sha": self.commit, "siblings": siblings}
            self.answer(about | {"private": False, "tags": [], "downloads": 0}, head=head)
        elif name in self.files:
            etag = hashlib.sha1(self.files[name]).hexdigest()
            self.answer(self.files[name], head=head, ETag=f'"{etag}"', X_Repo_Commit=self.commit)
        else:
            self.answer({}, 404, head, X_Error_Code="EntryNotFound")

    def do_HEAD(self):  # noqa: N802
        self.do_GET(head=True)

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def pushed(tmp_path_factory):
    """An adapter on a backbone in a folder, pushed and loaded again by a process whose hub is ours."""
    place = tmp_path_factory.mktemp("hub")
    backbone = load_backbone("tiny-llama")
    backbone.lm.save_pretrained(place / "models" / "small")
    backbone.tokenizer.save_pretrained(place / "models" / "small")
    model = ChameleonLiteForCausalLM.from_backbone(str(place / "models" / "small"), head="lora", rank=2)
    torch.nn.init.normal_(model.head.up, std=0.5)
    model.save_pretrained(place / "adapter")
    hub = type("Own", (Hub,), {"files": {}, "requests": [], "created": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    code = f"""
import torch
from chameleon_lite.chameleon import ChameleonLiteForCausalLM as Model
model = Model.from_pretrained({str(place / "adapter")!r})
print(model.push_to_hub("me/adapter", token="hf_x", private=True, commit_message="first"))
model.save_pretrained({str(place / "again")!r}, push_to_hub=True, repo_id="me/adapter", token="hf_x")
back = Model.from_pretrained("me/adapter", backbone={str(place / "models" / "small")!r})
assert torch.equal(back.head.up, model.head.up)
"""
    environment = {k: v for k, v in os.environ.items() if not k.lower().endswith(("_proxy", "offline"))}
    environment |= {
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        "HF_HUB_CACHE": str(place / "cache"),
    }
    environment |= {"PYTHONPATH": str(ROOT), "no_proxy": "*", "HF_HUB_DISABLE_XET": "1"}
    try:
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=200
        )
    finally:
        server.shutdown()
        server.server_close()
    assert done.returncode == 0, done.stderr
    return hub, place, done.stdout


def test_a_push_creates_the_repository_and_commits_the_adapter_with_its_card(pushed):
    hub, _, out = pushed
    made = hub.created[0]  # how "private" is spelled depends on the client's version
    assert made["name"] == "adapter" and (made.get("private") or made.get("visibility") == "private")
    assert set(hub.files) == {"README.md", "config.json", "generation_config.json", "model.safetensors"}
    assert "/me/adapter/commit/" in out
    posted = [path for path, _ in hub.requests if not path.startswith("/me/")]
    assert [path for path in posted if "/commit/" in path] == ["/api/models/me/adapter/commit/main"] * 2
    written = [token for path, token in hub.requests if "/commit/" in path or path == "/api/repos/create"]
    assert set(written) == {"Bearer hf_x"}


def test_what_is_on_the_hub_names_no_place_on_this_machine(pushed):
    hub, place, _ = pushed
    assert hub.files["README.md"].startswith(b"---\nlibrary_name: chameleon-lite\n")
    assert json.loads(hub.files["config.json"])["backbone_name"] == "small"
    for name, content in hub.files.items():
        for word in (str(place), place.name, os.uname().nodename, "/root", "/tmp", "/home"):
            assert word.encode() not in content, (name, word)


@pytest.mark.parametrize("variable", ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])
@pytest.mark.parametrize("word", ["1", "true", "True", "yes", "YES", "ON", "on"])
def test_what_was_fetched_once_is_found_offline_however_that_is_written(pushed, monkeypatch, variable, word):
    _, place, _ = pushed
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(place / "cache"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv(variable, word)
    monkeypatch.setattr("socket.create_connection", lambda *_, **__: pytest.fail("connected"))
    back = ChameleonLiteForCausalLM.from_pretrained("me/adapter", backbone=str(place / "models" / "small"))
    assert back.head.up.abs().sum() > 0


def test_a_revision_is_that_revision(pushed, monkeypatch):
    from chameleon_lite.errors import UserError

    _, place, _ = pushed
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    how = {"backbone": str(place / "models" / "small"), "cache_dir": str(place / "cache")}
    revision = next(iter((place / "cache" / "models--me--adapter" / "snapshots").iterdir())).name
    ChameleonLiteForCausalLM.from_pretrained("me/adapter", revision=revision, **how)
    with pytest.raises(UserError, match="no saved adapter"):
        ChameleonLiteForCausalLM.from_pretrained("me/adapter", revision="v2", **how)
