"""A hub on loopback with the routes that downloading needs, and a cache laid out as the hub's."""

import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = hashlib.sha1(b"commit").hexdigest()


def lay_out(cache: Path, repository: str, source: Path, kind: str = "models") -> Path:
    """A repository in a cache, as ``huggingface_hub`` keeps it; returns the snapshot."""
    folder = cache / "--".join([kind, *repository.split("/")])
    snapshot = folder / "snapshots" / COMMIT
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(COMMIT)
    for file in sorted(p for p in source.rglob("*") if p.is_file()):
        content = file.read_bytes()
        blob = folder / "blobs" / hashlib.sha256(content).hexdigest()
        blob.parent.mkdir(exist_ok=True)
        blob.write_bytes(content)
        there = snapshot / file.relative_to(source)
        there.parent.mkdir(parents=True, exist_ok=True)
        there.symlink_to(blob)
    return snapshot


@contextlib.contextmanager
def loopback_hub(repositories: dict[str, Path]) -> Iterator[tuple[str, list[str]]]:
    """Serve directories by id (data sets as ``datasets/owner/name``); yields the endpoint and the
    paths asked for."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self._answer(True)

        def do_HEAD(self):
            self._answer(False)

        def log_message(self, format, *args):
            pass

        def _answer(self, body: bool) -> None:
            path = unquote(urlsplit(self.path).path)
            asked.append(path)
            for name, directory in repositories.items():
                api = "/api/" + (name if name.startswith("datasets/") else f"models/{name}")
                if path.startswith(f"{api}/revision/") or path == api:
                    if not path.endswith(("/main", COMMIT, name)):
                        return self._send(b"{}", body, 404, {"X-Error-Code": "RevisionNotFound"})
                    rows = [{"rfilename": f} for f in self._files(directory)]
                    found = {"id": name.removeprefix("datasets/"), "sha": COMMIT, "siblings": rows}
                    return self._send(json.dumps(found).encode(), body)
                if path.startswith(f"{api}/tree/"):
                    rows = [
                        {
                            "type": "file",
                            "path": f,
                            "oid": f,
                            "size": (directory / f).stat().st_size,
                        }
                        for f in self._files(directory)
                    ]
                    return self._send(json.dumps(rows).encode(), body)
                if path.startswith(f"/{name}/resolve/"):
                    file = directory / path.removeprefix(f"/{name}/resolve/").partition("/")[2]
                    if file.is_file():
                        content = file.read_bytes()
                        tag = hashlib.sha256(content).hexdigest()
                        return self._send(content, body, 200, {"ETag": f'"{tag}"'})
                    return self._send(b"", body, 404, {"X-Error-Code": "EntryNotFound"})
            return self._send(b"{}", body, 404, {"X-Error-Code": "RepoNotFound"})

        def _files(self, directory: Path) -> list[str]:
            return [str(p.relative_to(directory)) for p in directory.rglob("*") if p.is_file()]

        def _send(self, content: bytes, body: bool, code: int = 200, headers=None) -> None:
            self.send_response(code)
            head = {"Content-Length": str(len(content)), "X-Repo-Commit": COMMIT, **(headers or {})}
            for key, value in head.items():
                self.send_header(key, value)
            self.end_headers()
            if body:
                self.wfile.write(content)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()
