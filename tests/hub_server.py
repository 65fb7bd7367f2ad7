"""A loopback Hugging Face Hub with only the endpoints that `load_dataset` and `from_pretrained` call.

HF_ENDPOINT is read when huggingface_hub is imported, so its clients run in a subprocess:

    with HubServer(root) as hub:
        subprocess.run([sys.executable, "train.py", ...], env=os.environ | hub.environment(tmp_path / "hf"))
    assert not hub.other_hosts
"""

import hashlib
import json
import re
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import NamedTuple, Self
from urllib.parse import unquote, urlsplit

REPO = r"(?P<repo>[^/]+/[^/]+)"
INFO = re.compile(rf"/api/(?P<kind>models|datasets)/{REPO}(?:/revision/(?P<revision>[^/]+))?")
TREE = re.compile(rf"/api/(?P<kind>models|datasets)/{REPO}/tree/(?P<revision>[^/]+)(?P<path>/.+)?")
FILE = re.compile(rf"/(?P<kind>datasets/)?{REPO}/resolve/(?P<revision>[^/]+)/(?P<path>.+)")
MESSAGES = {
    "RepoNotFound": "Repository not found",
    "RevisionNotFound": "Invalid rev id",
    "EntryNotFound": "Entry not found",
}


class NotFound(Exception):
    """Becomes a 404 whose X-Error-Code header tells the client which exception to raise."""

    def __init__(self, code: str, headers: dict[str, str] | None = None) -> None:
        self.code = code
        self.headers = headers or {}


class Request(NamedTuple):
    method: str
    path: str  # with its query; a whole URL, or host:port, where the server was asked as a proxy


class Loopback(ThreadingHTTPServer):
    """A server on this machine, for as long as its `with` block lasts."""

    def __init__(self, handler: type[BaseHTTPRequestHandler]) -> None:
        super().__init__(("127.0.0.1", 0), handler)
        self.endpoint = f"http://127.0.0.1:{self.server_port}"
        self.thread = Thread(target=self.serve_forever, daemon=True)

    def __enter__(self) -> Self:
        self.thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.shutdown()
        self.thread.join()
        self.server_close()


class LoopbackHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # the client keeps its connection open and relies on Content-Length

    def body(self) -> bytes:
        """To be read in any case: or it would be read as the next request."""
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Keeps the test's stderr free of one line per request."""


class HubServer(Loopback):
    """Serves `root/{models,datasets}/OWNER/NAME/` as revision main, and `.../NAME@REVISION/` as any other."""

    def __init__(self, root: Path) -> None:
        super().__init__(HubRequestHandler)
        self.root = root
        self.requests: list[Request] = []

    @property
    def other_hosts(self) -> list[Request]:
        """What was meant for other hosts: `environment` sends it here, as to a proxy, and it is refused."""
        return [request for request in self.requests if not request.path.startswith("/")]

    def environment(self, hf_home: Path) -> dict[str, str]:
        """The variables that point a subprocess at this Hub and its own cache, every other host cut off."""
        proxies = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy")
        return {
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(hf_home),
            "HF_HUB_CACHE": str(hf_home / "hub"),
            "HF_DATASETS_CACHE": str(hf_home / "datasets"),
            "HF_HUB_OFFLINE": "0",
            **dict.fromkeys(proxies, self.endpoint),
            **dict.fromkeys(("NO_PROXY", "no_proxy"), "127.0.0.1"),
        }

    def snapshot(self, kind: str, repo: str, revision: str) -> tuple[Path, str]:
        """The folder and the commit hash that a branch, tag or commit hash of a repository stands for."""
        main = self.root / kind / repo
        if not main.is_dir():
            raise NotFound("RepoNotFound")
        for folder in (main, *main.parent.glob(f"{main.name}@*")):
            commit = commit_hash(folder)
            if revision in (folder.name.partition("@")[2] or "main", commit):
                return folder, commit
        raise NotFound("RevisionNotFound")


class HubRequestHandler(LoopbackHandler):
    server: HubServer

    def answer(self) -> None:
        self.server.requests.append(Request(self.command, unquote(self.path)))
        self.body()
        # A whole URL (asked as a proxy) must match nothing below.
        path = unquote(urlsplit(self.path).path) if self.path.startswith("/") else ""
        try:
            if match := FILE.fullmatch(path):
                self.answer_file(**match.groupdict())
            elif match := TREE.fullmatch(path):
                self.answer_tree(**match.groupdict())
            elif match := INFO.fullmatch(path):
                self.answer_info(**match.groupdict())
            else:
                raise NotFound("EntryNotFound")
        except NotFound as error:
            message = MESSAGES[error.code]
            headers = {"X-Error-Code": error.code, "X-Error-Message": message, **error.headers}
            self.send(404, json.dumps({"error": message}).encode(), headers)

    do_HEAD = do_GET = do_POST = do_CONNECT = answer

    def answer_info(self, kind: str, repo: str, revision: str | None) -> None:
        folder, commit = self.server.snapshot(kind, repo, revision or "main")
        siblings = [{"rfilename": path.relative_to(folder).as_posix()} for path in files_in(folder)]
        info = {"id": repo, "sha": commit, "private": False, "gated": False, "siblings": siblings}
        self.send(200, json.dumps(info).encode(), {})

    def answer_tree(self, kind: str, repo: str, revision: str, path: str | None) -> None:
        folder, _ = self.server.snapshot(kind, repo, revision)
        listed = folder / (path or "").strip("/")
        if not listed.is_dir():
            raise NotFound("EntryNotFound")
        entries = [
            {
                "type": "directory" if entry.is_dir() else "file",
                "path": entry.relative_to(folder).as_posix(),
                "size": 0 if entry.is_dir() else entry.stat().st_size,
                "oid": commit_hash(entry) if entry.is_dir() else hashlib.sha1(entry.read_bytes()).hexdigest(),
            }
            for entry in sorted(listed.iterdir())
        ]
        self.send(200, json.dumps(entries).encode(), {})

    def answer_file(self, kind: str | None, repo: str, revision: str, path: str) -> None:
        folder, commit = self.server.snapshot("datasets" if kind else "models", repo, revision)
        if not (folder / path).is_file():
            # With the commit the client remembers that the file is absent, and asks only once.
            raise NotFound("EntryNotFound", {"X-Repo-Commit": commit})
        content = (folder / path).read_bytes()
        # No X-Xet-Hash: the client then takes the file from this very answer, not from Xet storage.
        self.send(200, content, {"X-Repo-Commit": commit, "ETag": f'"{hashlib.sha256(content).hexdigest()}"'})


def files_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def commit_hash(folder: Path) -> str:
    digest = hashlib.sha1(folder.name.encode())
    for path in files_in(folder):
        digest.update(path.relative_to(folder).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()
