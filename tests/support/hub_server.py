"""A Hugging Face hub on loopback: the few endpoints that huggingface_hub asks, and a record of what was asked."""

from __future__ import annotations

import hashlib
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

Files = dict[str, bytes]


@dataclass
class Repository:
    """What one repository holds: the files of each revision, and the status that refuses them where it is gated."""

    revisions: dict[str, Files]
    gated: int | None = None

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
    """

    repositories: dict[str, Repository] = field(default_factory=dict)
    requests: list[tuple[str, str]] = field(default_factory=list)
    broken: set[str] = field(default_factory=set)

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

    def _answer(self) -> None:
        path = urlsplit(self.path).path
        self.hub.requests.append((self.command, path))
        parts = [unquote(part) for part in path.removeprefix("/api/models").split("/")[1:]]
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
            return self._send_json({"id": f"{owner}/{name}", "sha": commit, "siblings": _siblings(files)})
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
        if self.command == "GET":
            self.wfile.write(body[:stop_after])
            self.close_connection = self.close_connection or stop_after is not None


def _siblings(files: Files) -> list[dict[str, str]]:
    return [{"rfilename": path} for path in files]


def _entry(path: str, content: bytes) -> dict[str, object]:
    return {"type": "file", "path": path, "size": len(content), "oid": _hash(content)}


def _hash(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()
