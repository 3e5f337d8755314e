"""A server on this machine that plays the few endpoints of the Hugging Face hub which an upload and a download need."""

import base64
import hashlib
import json
from http.server import BaseHTTPRequestHandler
from typing import Any

COMMIT = "c" * 40


class FakeHub(BaseHTTPRequestHandler):
    """One model repository, whatever its name; subclass it with fresh `files`, `blobs` and `asked`."""

    protocol_version = "HTTP/1.1"
    files: dict[str, bytes]
    """What is committed, by path."""
    blobs: dict[str, bytes]
    """What was uploaded, by sha256."""
    asked: list[tuple[str, str, str | None]]
    """Method, path and access token of every request."""

    def do_POST(self) -> None:
        body = self._body()
        if self.path == "/api/repos/create":
            return self._json({"url": f"{self._address}/{body['organization']}/{body['name']}"})
        if self.path == "/api/validate-yaml":
            return self._json({"errors": [], "warnings": []})
        if "/preupload/" in self.path:
            return self._json({"files": [self._mode(file["path"]) for file in body["files"]]})
        if self.path.endswith("/info/lfs/objects/batch"):
            return self._json({"transfer": "basic", "objects": [self._place(item) for item in body["objects"]]})
        assert "/commit/main" in self.path, self.path
        self._commit(body)
        return self._json({"commitUrl": f"{self._address}/acme/toy/commit/{COMMIT}", "commitOid": COMMIT})

    def do_PUT(self) -> None:
        self._note()
        content = self.rfile.read(int(self.headers["Content-Length"]))
        self.blobs[hashlib.sha256(content).hexdigest()] = content
        self._json({})

    def do_GET(self) -> None:
        self._note()
        if "/resolve/" in self.path:
            content = self.files[self.path.split(f"/resolve/{COMMIT}/")[1]]
            etag = hashlib.sha256(content).hexdigest()
            return self._send(content, {"X-Repo-Commit": COMMIT, "ETag": f'"{etag}"'})
        if "/tree/" in self.path:
            entries = [
                {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                for path, content in self.files.items()
            ]
            return self._json(entries)
        names = [{"rfilename": path} for path in self.files]
        return self._json({"id": "acme/toy", "sha": COMMIT, "siblings": names, "private": False, "tags": []})

    do_HEAD = do_GET

    @property
    def _address(self) -> str:
        return f"http://{self.headers['Host']}"

    @staticmethod
    def _mode(path: str) -> dict[str, Any]:
        mode = "lfs" if path.endswith(".safetensors") else "regular"
        return {"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": None}

    def _place(self, item: dict[str, Any]) -> dict[str, Any]:
        return item | {"actions": {"upload": {"href": f"{self._address}/blob/{item['oid']}"}}}

    def _commit(self, lines: list[dict[str, Any]]) -> None:
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                self.files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                self.files[value["path"]] = self.blobs[value["oid"]]

    def _body(self) -> Any:
        self._note()
        text = self.rfile.read(int(self.headers["Content-Length"])).decode()
        return [json.loads(line) for line in text.splitlines()] if "/commit/" in self.path else json.loads(text)

    def _note(self) -> None:
        self.asked.append((self.command, self.path, self.headers.get("Authorization")))

    def _json(self, content: Any) -> None:
        self._send(json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _send(self, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(200)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass
