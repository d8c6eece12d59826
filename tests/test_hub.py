"""Models on the Hub: a stand-in for its HTTP API on the loopback, and model cards."""

import base64
import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
import yaml

import perceivers
from perceivers import PerceiverIO, PerceiversError
from perceivers.model.costs import measure_parts
from perceivers.text.model import BertConfig
from tests.support import images
from tests.support.models import classifier, language


class Hub(BaseHTTPRequestHandler):
    """Keeps repositories of regular files in memory; "theirs" belongs to somebody else, and "secret" is the token."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments):
        pass

    def answer(self, status, content=b"", **headers):
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_POST(self):
        repos, body = self.server.repos, self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/api/validate-yaml":
            return self.answer(200, {"errors": [], "warnings": []})
        if self.headers["Authorization"] != "Bearer secret":
            return self.answer(401, {"error": "Invalid username or password."})
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked.get('organization') or 'me'}/{asked['name']}"
            if name.startswith("theirs/"):
                return self.answer(403, {"error": "You don't have the rights to create a model under this namespace"})
            if name in repos:
                return self.answer(409, {"error": "You already created this model repo", "url": self.url(name)})
            repos[name] = {}
            self.server.created.append(asked)
            return self.answer(200, {"url": self.url(name), "name": name})
        user, model, action = self.path.split("/")[3:6]
        if action == "preupload":
            files = [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                     for file in json.loads(body)["files"]]  # fmt: skip
            return self.answer(200, {"files": files})
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                repos[f"{user}/{model}"][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        url = f"{self.url(f'{user}/{model}')}/commit/{'1' * 40}"
        return self.answer(200, {"commitUrl": url, "commitOid": "1" * 40, "commitMessage": "", "success": True})

    def do_GET(self):
        parts = self.path.split("?")[0].strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            files = self.server.repos.get("/".join(parts[2:4]))
            if files is None:
                return self.answer(404, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")
            names = [{"rfilename": name, "path": name, "type": "file", "size": len(content), "oid": "1" * 40}
                     for name, content in files.items()]  # fmt: skip
            if "tree" in parts:
                return self.answer(200, names)
            return self.answer(200, {"id": "/".join(parts[2:4]), "sha": "1" * 40, "siblings": names})
        content = self.server.repos.get("/".join(parts[:2]), {}).get("/".join(parts[4:]))
        if content is None:
            return self.answer(404, X_Error_Code="EntryNotFound")
        return self.answer(200, content, ETag=f'"{hashlib.sha1(content).hexdigest()}"', X_Repo_Commit="1" * 40)

    do_HEAD = do_GET

    def url(self, name):
        return f"http://localhost:{self.server.server_port}/{name}"


@pytest.fixture
def hub():
    with ThreadingHTTPServer(("localhost", 0), Hub) as server:
        server.repos, server.created = {}, []
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a small run."""
    folder = tmp_path_factory.mktemp("digits") / "run"
    images.small_run(output=folder).run()
    return folder


def on_hub(code, folder, port, **variables):
    """Runs a program whose Hub is at a port of the loopback; returns what it prints, and its error in the end."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    environment |= {"HF_ENDPOINT": f"http://localhost:{port}", "HF_HOME": str(folder / "hf"), "HF_TOKEN": "secret"}
    code = f"import perceivers\nfrom perceivers import PerceiverIO\n{code}"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment | variables, cwd=folder, capture_output=True, text=True
    )
    return done.stdout.strip(), (done.stderr.strip().splitlines() or [""])[-1]


def read_card(text):
    _, metadata, body = text.split("---\n", 2)
    return yaml.safe_load(metadata), body


def test_a_model_is_published_and_loaded_again(hub, run, tmp_path):
    code = f"model = PerceiverIO.from_pretrained({str(run)!r})\nprint(model.push_to_hub('me/digits', private=True))"
    out, error = on_hub(code, tmp_path, hub.server_port)
    assert out == f"http://localhost:{hub.server_port}/me/digits/commit/{'1' * 40}", error
    assert hub.created[0]["visibility"] == "private"
    assert hub.repos["me/digits"].keys() == {"config.json", "model.safetensors", "README.md"}
    assert hub.repos["me/digits"]["model.safetensors"] == (run / "model/model.safetensors").read_bytes()
    code = "model = PerceiverIO.from_pretrained('me/digits', revision='main')\nprint(model.push_to_hub('me/copy'))"
    out, error = on_hub(code, tmp_path, hub.server_port)
    assert "/me/copy/commit/" in out, error
    assert hub.repos["me/copy"]["model.safetensors"] == hub.repos["me/digits"]["model.safetensors"]
    metadata, _ = read_card(hub.repos["me/copy"]["README.md"].decode())
    first, _ = read_card(hub.repos["me/digits"]["README.md"].decode())
    figures = [card["model-index"][0]["results"][0]["metrics"] for card in (first, metadata)]
    assert figures[0] == figures[1], "the config of the model has them"


REFUSED = {
    ("me/digits", ""): "there is no token for the Hub: run `hf auth login`, set HF_TOKEN, or pass token=...",
    ("me/digits", "other"): "the Hub does not accept the token: make a new one, and run `hf auth login`.",
    ("me/taken", "secret"): "there is a model me/taken on the Hub already: choose another name, or pass exist_ok=True.",
    ("theirs/digits", "secret"): "the token has no right to write theirs/digits on the Hub: use one of its owner, with "
    "write access.",
    ("a/b/c", "secret"): "'a/b/c' is not a name on the Hub: write USER/MODEL.",
}
"""By name and token, why a model is not published."""

PUSH = """
import os
model = perceivers.load('model')
for name, token in {cases!r}:
    os.environ["HF_TOKEN"] = token
    try:
        model.push_to_hub(name)
    except perceivers.PerceiversError as error:
        print(error)
"""


def test_what_is_refused(hub, tmp_path):
    classifier().save(tmp_path / "model")
    hub.repos["me/taken"] = {"README.md": b"mine"}
    out, error = on_hub(PUSH.format(cases=list(REFUSED)), tmp_path, hub.server_port)
    assert out.splitlines() == list(REFUSED.values()), error
    assert hub.repos == {"me/taken": {"README.md": b"mine"}}


@pytest.mark.parametrize("variables", [{"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://localhost:9"}])
def test_without_a_network(tmp_path, variables):
    classifier().save(tmp_path / "model")
    out, error = on_hub(PUSH.format(cases=[("me/digits", "secret")]), tmp_path, 9, **variables)
    assert out.startswith("the Hub cannot be reached to upload me/digits: "), error
    assert out.count("\n") == 0


def test_a_version_is_added_where_that_is_wanted(hub, tmp_path):
    classifier().save(tmp_path / "model")
    hub.repos["me/taken"] = {"README.md": b"mine", "notes.txt": b"mine"}
    out, _ = on_hub("print(perceivers.load('model').push_to_hub('me/taken', exist_ok=True))", tmp_path, hub.server_port)
    assert "/me/taken/commit/" in out
    assert hub.repos["me/taken"].keys() == {"README.md", "notes.txt", "config.json", "model.safetensors"}


def test_the_card_is_written_from_the_run(run, tmp_path):
    model = perceivers.load(run)
    example = {"image": torch.zeros(1, 1, 8, 8)}
    model.save_pretrained(tmp_path / "digits", license="cc0-1.0", example=example)
    metadata, body = read_card((tmp_path / "digits/README.md").read_text())
    figures = json.loads((run / "metrics.json").read_text())
    assert metadata["license"] == "cc0-1.0"
    assert (metadata["library_name"], metadata["pipeline_tag"]) == ("perceivers", "image-classification")
    (result,) = metadata["model-index"][0]["results"]
    assert result["dataset"]["name"] == "digits"
    measured = {metric["name"]: metric["value"] for metric in result["metrics"]}
    assert measured["top1 (validation)"] == pytest.approx(figures["val_top1"])
    flops = sum(part.flops for part in measure_parts(model, example).values())
    steps = json.loads((run / "model/config.json").read_text())["step"]
    for line in (
        "| task | `image_classification` |",
        f"| parameters | {figures['parameters']:,} |",
        f"| FLOPs | {flops:,} for one example (a multiply-add counts as two) |",
        "| data | digits |",
        f"| updates | {steps:,} |",
        f"| seed | {figures['seed']} |",
        f"| top1 | validation | {figures['val_top1']:.6g} |",
        "Of the weights: cc0-1.0. Of the code: Apache-2.0.",
        "| outputs | `label` (LabelOutput, 10 classes) |",
    ):
        assert line in body, body
    (program,) = body.split("```python\n")[1:]
    lines = program.split("```")[0].strip().splitlines()
    assert len(lines) == 3
    names = {"image": torch.zeros(1, 1, 8, 8)}
    exec("\n".join(lines).replace("'digits'", repr(str(tmp_path / "digits"))), names)
    assert names["outputs"]["label"].shape == (1, 10)
    assert str(run) not in body, "paths of this machine are not told"


def test_a_card_claims_nothing_of_other_weights(run, tmp_path):
    model = perceivers.load(run)
    next(model.parameters()).data += 1e-3
    for changed, name in ((model, "tuned"), (classifier(), "fresh")):
        changed.save_pretrained(tmp_path / name)
        metadata, body = read_card((tmp_path / name / "README.md").read_text())
        assert "model-index" not in metadata
        assert "license" not in metadata
        assert "Nothing that belongs to these weights" in body
        assert "top1" not in body
    assert json.loads((tmp_path / "tuned/config.json").read_text())["experiment"] == "image_classification"


def test_a_tokenizer_comes_along(tmp_path):
    language().save(tmp_path / "language")
    (tmp_path / "language/tokenizer.model").write_bytes(b"pieces")
    PerceiverIO.from_pretrained(tmp_path / "language").save_pretrained(tmp_path / "copy")
    assert (tmp_path / "copy/tokenizer.model").read_bytes() == b"pieces"


def test_a_class_loads_its_own_models(tmp_path):
    bert = BertConfig(length=8, channels=8, depth=1, heads=2).build()
    bert.save(tmp_path / "bert")
    assert type(type(bert).from_pretrained(tmp_path / "bert")) is type(bert)
    classifier().save(tmp_path / "classifier")
    with pytest.raises(PerceiversError, match=f"holds a PerceiverIO, not a {type(bert).__name__}"):
        type(bert).from_pretrained(tmp_path / "classifier")
