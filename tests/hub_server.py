"""A Hugging Face Hub on this machine: the few endpoints that an upload needs, in the form of the real ones."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional

TOKEN = "hf_good"
READ_ONLY = "hf_read"
COMMIT = "b" * 40


class HubServer(ThreadingHTTPServer):
    """Server with its repositories: files by name, and whether they are private."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: Dict[str, Dict[str, Any]] = {}
        self.objects: Dict[str, bytes] = {}
        """Contents of large files, by their SHA-256."""
        self.asked: List[str] = []
        self.broken: Optional[str] = None
        """Regular expression of paths that are answered with 500."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: HubServer

    def do_GET(self) -> None:
        if self._is_refused():
            return
        if self.path == "/api/whoami-v2":
            self._answer({"type": "user", "name": "me", "orgs": [], "auth": {"accessToken": {"role": "write"}}})
            return
        name = re.sub(r"^/api/models/|/revision/main$|\?.*", "", self.path)
        if name not in self.server.repositories:
            self._answer({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})
            return
        found = self.server.repositories[name]
        siblings = [{"rfilename": file} for file in found["files"]]
        self._answer({"id": name, "modelId": name, "private": found["private"], "siblings": siblings, "tags": []})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self._is_refused():
            return
        if self.headers["Authorization"] == f"Bearer {READ_ONLY}":
            self._answer({"error": "You don't have the rights to create a model under this namespace"}, 403)
        elif self.path == "/api/repos/create":
            self._create(json.loads(body))
        elif self.path == "/api/validate-yaml":
            self._answer({"errors": [], "warnings": []})
        elif "/preupload/" in self.path:
            files = json.loads(body)["files"]
            modes = [(file["path"], "lfs" if file["path"].endswith(".safetensors") else "regular") for file in files]
            self._answer({"files": [{"path": p, "uploadMode": m, "shouldIgnore": False} for p, m in modes]})
        elif self.path.endswith("/info/lfs/objects/batch"):
            self._batch(json.loads(body)["objects"])
        elif "/commit/" in self.path:
            self._commit(body)
        else:
            self._answer({"error": f"no such endpoint: {self.path}"}, 404)

    def do_PUT(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        oid = self.path.rpartition("/")[2]
        assert hashlib.sha256(content).hexdigest() == oid
        self.server.objects[oid] = content
        self._answer({})

    def _create(self, values: Dict[str, Any]) -> None:
        name = f"{values.get('organization') or 'me'}/{values['name']}"
        known = name in self.server.repositories
        if not known:
            is_private = bool(values.get("private")) or values.get("visibility") == "private"
            self.server.repositories[name] = {"private": is_private, "files": {".gitattributes": b""}, "commits": []}
        self._answer({"url": f"{self.server.url}/{name}", "name": name, "id": "1"}, 409 if known else 200)

    def _batch(self, objects: List[Dict[str, Any]]) -> None:
        actions = [{"upload": {"href": f"{self.server.url}/objects/{part['oid']}"}} for part in objects]
        parts = [dict(part, authenticated=True, actions=action) for part, action in zip(objects, actions)]
        self._answer({"transfer": "basic", "objects": parts})

    def _commit(self, body: bytes) -> None:
        name = re.fullmatch(r"/api/models/([^?]+)/commit/main(\?.*)?", self.path)[1]  # type: ignore[index]
        repository, message = self.server.repositories[name], ""
        for line in body.splitlines():
            part = json.loads(line)
            if part["key"] == "header":
                message = part["value"]["summary"]
            elif part["key"] == "file":
                repository["files"][part["value"]["path"]] = base64.b64decode(part["value"]["content"])
            elif part["key"] == "lfsFile":
                repository["files"][part["value"]["path"]] = self.server.objects[part["value"]["oid"]]
        repository["commits"].append(message)
        self._answer({"commitUrl": f"{self.server.url}/{name}/commit/{COMMIT}", "commitOid": COMMIT, "success": True})

    def _is_refused(self) -> bool:
        self.server.asked.append(f"{self.command} {self.path}")
        if self.server.broken is not None and re.search(self.server.broken, self.path):
            self._answer({"error": "the hub\nis broken"}, 500)
            return True
        if self.headers["Authorization"] not in (f"Bearer {TOKEN}", f"Bearer {READ_ONLY}"):
            self._answer({"error": "Invalid credentials in Authorization header"}, 401)
            return True
        return False

    def _answer(self, values: Dict[str, Any], status: int = 200, headers: Optional[Dict[str, str]] = None) -> None:
        content = json.dumps(values).encode()
        self.send_response(status)
        if status >= 400 and "error" in values:
            self.send_header("X-Error-Message", " ".join(values["error"].split()))
        for key, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args: Any) -> None:
        pass


@contextmanager
def serving() -> Iterator[HubServer]:
    """Yields a hub that answers until the body ends."""
    server = HubServer()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def serving_instead_of_the_real_hub(monkeypatch: Any, folder: Path) -> Iterator[HubServer]:
    """Yields a hub to which huggingface_hub is directed in this process, with a good token in the environment."""
    from huggingface_hub import constants

    agents = folder / "agents.json"
    agents.write_text('{"harnesses": {}}')  # otherwise version 2 asks the real hub for a list
    monkeypatch.setattr(constants, "AGENT_HARNESSES_PATH", str(agents), raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with serving() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        yield server
