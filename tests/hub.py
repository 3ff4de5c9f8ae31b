"""A stand-in for the hub: a local server with the endpoints of uploads and of downloads.

Written after the requests of huggingface_hub. It keeps repositories in memory and asks for a token.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import yaml

#: Tokens, and the status with which others than `good` are refused.
TOKENS = {"good": 200, "reader": 403}
COMMIT = "c" * 40


@dataclass
class Repo:
    private: bool
    branches: dict[str, dict[str, bytes]] = field(default_factory=lambda: {"main": {}})


class Hub(ThreadingHTTPServer):
    """Repositories by name, and the objects of large files by their digest."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repos: dict[str, Repo] = {}
        self.objects: dict[str, bytes] = {}
        self.asked: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@contextmanager
def running() -> Iterator[Hub]:
    """A hub that answers until the end of the block."""
    hub = Hub()
    thread = Thread(target=hub.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()


def environment(server: Hub | None, folder: Path, token: str | None) -> dict[str, str]:
    """The environment of a process that knows no other hub, and no token but this one."""
    plain = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))}
    url = server.url if server else "http://127.0.0.1:9"  # where nothing answers
    plain |= {"HF_ENDPOINT": url, "HF_HOME": str(folder / "hf"), "HF_HUB_DISABLE_XET": "1"}
    plain["PYTHONPATH"] = str(Path(__file__).parents[1] / "src")
    return plain | ({"HF_TOKEN": token} if token else {})


class Handler(BaseHTTPRequestHandler):
    """One request."""

    server: Any
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""

    def answer(self, body: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def handle_one(self, routes: list[tuple[str, str]]) -> None:
        path = self.path.partition("?")[0]
        self.server.asked.append(f"{self.command} {path}")
        content = self.body()
        for pattern, name in routes:
            if match := re.fullmatch(pattern, path):
                getattr(self, name)(content, *match.groups())
                return
        self.answer({"error": f"no such place: {path}"}, 404)

    def do_POST(self) -> None:
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        status = TOKENS.get(token, 401)
        if status != 200:
            self.body()
            self.answer({"error": f"token {token!r} is refused"}, status)
            return
        self.handle_one(
            [
                (r"/api/validate-yaml", "validate"),
                (r"/api/repos/create", "create"),
                (r"/api/models/([^/]+/[^/]+)/branch/(.+)", "branch"),
                (r"/api/models/([^/]+/[^/]+)/preupload/(.+)", "preupload"),
                (r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", "batch"),
                (r"/api/models/([^/]+/[^/]+)/commit/(.+)", "commit"),
            ]
        )

    def do_PUT(self) -> None:
        self.handle_one([(r"/objects/(\w+)", "store")])

    def do_GET(self) -> None:
        self.handle_one(
            [
                (r"/api/models/([^/]+/[^/]+)", "info"),
                (r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", "resolve"),
            ]
        )

    do_HEAD = do_GET  # noqa: N815

    def validate(self, content: bytes) -> None:
        front = yaml.safe_load(json.loads(content)["content"].split("---")[1])
        wrong = [] if front.get("license") else [{"message": '"license" is missing'}]
        self.answer({"errors": wrong, "warnings": []}, 400 if wrong else 200)

    def create(self, content: bytes) -> None:
        asked = json.loads(content)
        name = "/".join(filter(None, (asked.get("organization"), asked["name"])))
        private = asked.get("private") or asked.get("visibility") == "private"
        taken = name in self.server.repos
        if not taken:
            self.server.repos[name] = Repo(bool(private))
        self.answer({"url": f"{self.server.url}/{name}"}, 409 if taken else 200)

    def branch(self, content: bytes, name: str, branch: str) -> None:
        branches = self.server.repos[name].branches
        taken = branch in branches
        branches.setdefault(branch, dict(branches["main"]))
        self.answer({}, 409 if taken else 200)

    def preupload(self, content: bytes, name: str, branch: str) -> None:
        files = json.loads(content)["files"]
        assert branch in self.server.repos[name].branches
        modes = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                "shouldIgnore": False,
                "oid": None,
            }
            for file in files
        ]
        self.answer({"files": modes})

    def batch(self, content: bytes, name: str) -> None:
        objects = [
            {**o, "actions": {"upload": {"href": f"{self.server.url}/objects/{o['oid']}"}}}
            for o in json.loads(content)["objects"]
        ]
        self.answer({"transfer": "basic", "objects": objects})

    def store(self, content: bytes, oid: str) -> None:
        whole = hashlib.sha256(content).hexdigest() == oid
        if whole:
            self.server.objects[oid] = content
        self.answer({}, 200 if whole else 400)

    def commit(self, content: bytes, name: str, branch: str) -> None:
        files = self.server.repos[name].branches[branch]
        for line in map(json.loads, content.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.server.objects[value["oid"]]
        url = f"{self.server.url}/{name}/commit/{COMMIT}"
        self.answer({"success": True, "commitOid": COMMIT, "commitUrl": url})

    def info(self, content: bytes, name: str) -> None:
        repo = self.server.repos.get(name)
        if repo is None:
            self.answer({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})
            return
        files = [{"rfilename": file} for file in repo.branches["main"]]
        found = {"_id": "0", "id": name, "private": repo.private, "sha": COMMIT, "siblings": files}
        self.answer(found)

    def resolve(self, content: bytes, name: str, branch: str, file: str) -> None:
        repo = self.server.repos.get(name)
        held = repo and repo.branches["main" if branch == COMMIT else branch].get(file)
        if held is None:
            code = "EntryNotFound" if repo else "RepoNotFound"
            self.answer({}, 404, {"X-Error-Code": code, "X-Repo-Commit": COMMIT})
            return
        digest = hashlib.sha256(held).hexdigest()
        self.answer(held, 200, {"ETag": f'"{digest}"', "X-Repo-Commit": COMMIT})
