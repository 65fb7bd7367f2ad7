"""A loopback Hugging Face Hub that takes uploads: who am I, make a repository, preupload, LFS batch, commit.

    with UploadHub() as hub:
        subprocess.run([...], env=os.environ | hub.environment(tmp_path / "hf"))
    assert hub.files["me/model"]["README.md"] == b"..."

As on the Hub, what is large goes by LFS and the rest in the commit, which names only what has arrived.
"""

import base64
import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml
from hub_server import Loopback, LoopbackHandler

OWNER, TOKEN = "me", "hf_write"


class UploadHub(Loopback):
    """Holds the repositories as {name: {path: content}}, and every request as "METHOD /path"."""

    def __init__(self) -> None:
        super().__init__(UploadHandler)
        self.files: dict[str, dict[str, bytes]] = {}
        self.large: dict[str, bytes] = {}  # sha256 -> content that arrived by LFS
        self.commits: list[str] = []
        self.requests: list[str] = []
        self.is_broken = False  # then no commit succeeds

    def environment(self, hf_home: Path, token: str | None = TOKEN) -> dict[str, str]:
        return {
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(hf_home),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",  # a protocol of its own, in a library of its own
            "HF_TOKEN": token or "",
        }


class UploadHandler(LoopbackHandler):
    server: UploadHub

    def answer(self) -> None:
        path = urlsplit(self.path).path
        self.server.requests.append(f"{self.command} {path}")
        body = self.body()
        for pattern, act in ROUTES.items():
            if match := re.fullmatch(pattern, f"{self.command} {path}"):
                is_known = self.headers.get("Authorization") == f"Bearer {TOKEN}"
                if not is_known and self.command != "PUT":  # where LFS sends to carries its own permission
                    return self.send_json(401, {"error": "Invalid credentials"})
                return self.send_json(*act(self, body, *match.groups()))
        return self.send_json(404, {"error": "not found"})

    do_GET = do_POST = do_PUT = answer

    def who_am_i(self, body: bytes) -> tuple[int, Any]:
        return 200, {"name": OWNER, "type": "user", "auth": {"accessToken": {"role": "write"}}}

    def create(self, body: bytes) -> tuple[int, Any]:
        asked = json.loads(body)
        name = f"{asked['organization'] or OWNER}/{asked['name']}"
        answer = {"name": name, "url": f"{self.server.endpoint}/{name}", "id": name}
        if name in self.server.files:
            return 409, {"error": "You already created this model repo", **answer}
        self.server.files[name] = {}
        return 200, answer

    def validate(self, body: bytes) -> tuple[int, Any]:
        matter = json.loads(body)["content"].split("---\n")[1]
        is_valid = isinstance(yaml.safe_load(matter), dict)
        return (200 if is_valid else 400), {"errors": [] if is_valid else [{"message": "no metadata"}]}

    def preupload(self, body: bytes, name: str) -> tuple[int, Any]:
        paths = [file["path"] for file in json.loads(body)["files"]]
        modes = {path: "lfs" if path.endswith(".safetensors") else "regular" for path in paths}
        files = [{"path": path, "uploadMode": mode, "shouldIgnore": False} for path, mode in modes.items()]
        return 200, {"files": files}

    def batch(self, body: bytes, name: str) -> tuple[int, Any]:
        objects = [
            {**one, "actions": {"upload": {"href": f"{self.server.endpoint}/lfs/{one['oid']}"}}}
            for one in json.loads(body)["objects"]
        ]
        return 200, {"transfer": "basic", "objects": objects}

    def store(self, body: bytes, oid: str) -> tuple[int, Any]:
        if hashlib.sha256(body).hexdigest() != oid:
            return 400, {"error": "not what was announced"}
        self.server.large[oid] = body
        return 200, {}

    def commit(self, body: bytes, name: str) -> tuple[int, Any]:
        if self.server.is_broken:
            return 403, {"error": "the storage limit is reached"}
        lines = [json.loads(line) for line in body.splitlines()]
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                self.server.files[name][value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                self.server.files[name][value["path"]] = self.server.large[value["oid"]]
        self.server.commits.append(name)
        url = f"{self.server.endpoint}/{name}/commit/0123"
        return 200, {"success": True, "commitOid": "0123", "commitUrl": url}

    def send_json(self, status: int, value: Any) -> None:
        self.send(status, json.dumps(value).encode(), {"Content-Type": "application/json"})


ROUTES: dict[str, Callable[..., tuple[int, Any]]] = {
    "GET /api/whoami-v2": UploadHandler.who_am_i,
    "POST /api/repos/create": UploadHandler.create,
    "POST /api/validate-yaml": UploadHandler.validate,
    "POST /api/models/([^/]+/[^/]+)/preupload/main": UploadHandler.preupload,
    r"POST /([^/]+/[^/]+)\.git/info/lfs/objects/batch": UploadHandler.batch,
    "PUT /lfs/([0-9a-f]{64})": UploadHandler.store,
    "POST /api/models/([^/]+/[^/]+)/commit/main": UploadHandler.commit,
}
