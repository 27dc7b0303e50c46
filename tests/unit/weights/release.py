"""Model files for tests, and a fake release server of Ultralytics."""

import http.server
import io
import threading
import zipfile
from pathlib import Path

from trainer.core.dataset import ObjectRef
from trainer.core.model import OfficialModel
from trainer.core.retry import RetryPolicy
from trainer.core.stop import StopSignal
from trainer.storage.local import LocalObjectStore

BUCKET = "training-artifacts"
QUICK = RetryPolicy(tries=3, first_wait=0.001, longest_wait=0.002, total_seconds=20.0)
YOLO11N = OfficialModel(stem="yolo11n")


def weights(payload: bytes = b"w" * 5000) -> bytes:
    """Return an uncompressed ZIP archive in the format of torch.save."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(zipfile.ZipInfo("best/data.pkl"), payload)  # without the current time
    return buffer.getvalue()


def put(models: Path, name: str, content: bytes | None = None) -> Path:
    path = models / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(weights() if content is None else content)
    return path


def files_in(models: Path) -> list[str]:
    return [
        str(p.relative_to(models)) for p in models.rglob("*") if p.is_file() and p.suffix not in {".lock", ".sha256"}
    ]


def upload(store: LocalObjectStore, tmp_path: Path, key: str, content: bytes) -> ObjectRef:
    source = tmp_path / "source"
    source.write_bytes(content)
    ref = ObjectRef(bucket=BUCKET, key=key)
    store.upload(source, ref, StopSignal())
    return ref


class Release(http.server.ThreadingHTTPServer):
    """A fake release server that records the requested paths.

    It sends each response in `answers` once, and `body` for all later requests.
    """

    daemon_threads = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.paths: list[str] = []
        self.body = weights()
        self.answers: list[tuple[int, bytes | None]] = []
        self.trickle = threading.Event()
        self.slow = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v8.4.0"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Release

    def do_GET(self) -> None:
        self.server.paths.append(self.path)
        status, body = self.server.answers.pop(0) if self.server.answers else (200, self.server.body)
        self.send_response(status)
        if status == 302:
            self.send_header("Location", f"/moved{self.path}")
        declared = self.server.body if body is None else body
        self.send_header("Content-Length", str(len(declared)))
        self.end_headers()
        if self.server.slow:
            self.wfile.write(declared[:100])
            self.wfile.flush()
            self.server.trickle.wait(60)
        elif body is None:
            self.wfile.write(declared[: len(declared) // 2])  # the connection closes before the second half is sent
        else:
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass
