"""A Hugging Face hub on loopback: the few endpoints that huggingface_hub asks, and a record of what was asked."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

from paths import ROOT

Files = dict[str, bytes]


@dataclass
class Repository:
    """What one repository holds: the files of each revision, and the status that refuses them where it is gated."""

    revisions: dict[str, Files]
    gated: int | None = None
    private: bool = False

    def find(self, revision: str) -> tuple[str, Files] | None:
        """(commit, files) of a branch, tag or commit."""
        for name, files in self.revisions.items():
            commit = commit_of(files)
            if revision in (name, commit):
                return commit, files
        return None


@dataclass
class Hub:
    """The server, and what a test may change while it runs.

    Attributes:
        repositories: by id.
        requests: (method, path) of all that was asked.
        broken: files that stop in the middle the first time and fail (500) from then on.
        token: the one that may write.
        owners: in whose names it may.
    """

    repositories: dict[str, Repository] = field(default_factory=dict)
    requests: list[tuple[str, str]] = field(default_factory=list)
    broken: set[str] = field(default_factory=set)
    token: str = "hf_mine"
    owners: set[str] = field(default_factory=lambda: {"me"})

    def start(self) -> None:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def add(self, repository: str, files: Files, **revisions: Files) -> str:
        """Adds a repository and gives the commit of its main branch."""
        self.repositories[repository] = Repository({"main": files, **revisions})
        return commit_of(files)

    def fetched(self) -> list[str]:
        """Names of the files whose content was sent, sorted; a file that was sent twice is there twice."""
        gets = [path for method, path in self.requests if method == "GET" and "/resolve/" in path]
        return sorted(path.split("/resolve/")[1].split("/", 1)[1] for path in gets)


def commit_of(files: Files) -> str:
    return hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        path = urlsplit(self.path).path
        self.hub.requests.append((self.command, path))
        body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        _, _, *parts = [unquote(part) for part in path.split("/")]
        if parts == ["validate-yaml"]:
            return self._send_json({"errors": [], "warnings": []})
        if self.headers.get("Authorization") != f"Bearer {self.hub.token}":
            return self._refuse(401, "Unauthorized")
        if parts == ["repos", "create"]:
            return self._create(json.loads(body))
        _, owner, name, what, revision = parts
        if owner not in self.hub.owners:
            return self._refuse(403, "Forbidden")
        repository = self.hub.repositories[f"{owner}/{name}"]
        if what == "branch":
            repository.revisions.setdefault(revision, dict(repository.revisions["main"]))
            return self._send_json({})
        if what == "preupload":
            asked = [{"path": file["path"]} for file in json.loads(body)["files"]]
            return self._send_json({"files": [{**f, "uploadMode": "regular", "shouldIgnore": False} for f in asked]})
        return self._commit(f"{owner}/{name}", revision, [json.loads(line) for line in body.splitlines()])

    def _create(self, asked: dict[str, str]) -> None:
        name = f"{asked['organization']}/{asked['name']}"
        if asked["organization"] not in self.hub.owners:
            return self._refuse(403, "Forbidden")
        if name in self.hub.repositories:
            return self._send(409, json.dumps({"url": f"{self.hub.url}/{name}"}).encode(), {})
        private = asked.get("visibility") == "private" or bool(asked.get("private"))
        self.hub.repositories[name] = Repository({"main": {".gitattributes": b""}}, private=private)
        return self._send_json({"url": f"{self.hub.url}/{name}"})

    def _commit(self, name: str, revision: str, lines: list[dict[str, dict[str, str]]]) -> None:
        files = dict(self.hub.repositories[name].revisions[revision])
        for line in lines:
            value = line["value"]
            if line["key"] == "header" and value.get("parentCommit") not in (None, commit_of(files)):
                return self._refuse(412, "Changed")
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            if line["key"] == "deletedFile":
                del files[value["path"]]
        self.hub.repositories[name].revisions[revision] = files
        oid = commit_of(files)
        return self._send_json({"success": True, "commitOid": oid, "commitUrl": f"{self.hub.url}/{name}/commit/{oid}"})

    def _answer(self) -> None:
        path = urlsplit(self.path).path
        self.hub.requests.append((self.command, path))
        parts = [unquote(part) for part in path.removeprefix("/api/models").split("/")[1:]]
        if self.command == "GET" and path.startswith("/api/models/") and len(parts) == 2:
            parts += ["revision", "main"]
        if len(parts) < 4:
            return self._refuse(404, "EntryNotFound")  # what else some versions ask about
        owner, name, what, *rest = parts
        repository = self.hub.repositories.get(f"{owner}/{name}")
        if repository is None:
            return self._refuse(401, "RepoNotFound")  # what the hub says to whom it does not know
        found = repository.find(rest[0])
        if found is None:
            return self._refuse(404, "RevisionNotFound")
        commit, files = found
        if what == "revision":
            about = {"id": f"{owner}/{name}", "sha": commit, "private": repository.private}
            return self._send_json({**about, "siblings": _siblings(files)})
        if what == "tree":
            return self._send_json([_entry(path, content) for path, content in files.items()])
        if repository.gated:
            return self._refuse(repository.gated, "GatedRepo")
        file = "/".join(rest[1:])
        if file not in files:
            return self._refuse(404, "EntryNotFound", commit)
        return self._send_file(file, files[file], commit)

    def _send_file(self, file: str, content: bytes, commit: str) -> None:
        whole = file not in self.hub.broken
        if self.command == "GET" and not whole and self.hub.fetched().count(file) > 1:
            self._refuse(500, "Broken")
            return
        start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").split("-")[0])
        headers = {"ETag": f'"{_hash(content)}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        self._send(206 if start else 200, content[start:], headers, stop_after=None if whole else len(content) // 2)

    def _send_json(self, data: object) -> None:
        self._send(200, json.dumps(data).encode(), {"Content-Type": "application/json"})

    def _refuse(self, status: int, code: str, commit: str | None = None) -> None:
        self._send(status, b"", {"X-Error-Code": code} | ({"X-Repo-Commit": commit} if commit else {}))

    def _send(self, status: int, body: bytes, headers: dict[str, str], stop_after: int | None = None) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[:stop_after])
            self.close_connection = self.close_connection or stop_after is not None


def _siblings(files: Files) -> list[dict[str, str]]:
    return [{"rfilename": path} for path in files]


def _entry(path: str, content: bytes) -> dict[str, object]:
    return {"type": "file", "path": path, "size": len(content), "oid": _hash(content)}


def _hash(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


def environment(hub, folder):
    """Of a process that asks this hub alone."""
    mine = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    return {
        **mine,
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(folder / "hf"),
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
        "PYTHONPATH": str(ROOT),
    }
