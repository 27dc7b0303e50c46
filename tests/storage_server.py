"""A fake Supabase Storage server, with the measured behavior of the real server and with injected faults.

    with StorageServer({"datasets": False}, key="secret") as server:
        server.put("datasets", "a/data.yaml", b"…")
        server.fault("status", on="GET /object/", status=503, times=2)
        … server.url …

`python -m tests.storage_server --port 5005 --bucket datasets --bucket training-artifacts --key …` starts the server.
"""

from __future__ import annotations

import argparse
import contextlib
import threading
from typing import Self

from tests.storage_http import Server
from tests.storage_routes import Handler
from tests.storage_state import StorageState


class StorageServer(StorageState):
    def __init__(
        self, buckets: dict[str, bool] | None = None, *, key: str = "service-key", anon_key: str = "anon-key",
        port: int = 0, host: str = "127.0.0.1", limit: int | None = None, v2: bool = True, tus_host: str | None = None,
    ) -> None:  # fmt: skip
        super().__init__(buckets, key=key, anon_key=anon_key, limit=limit, v2=v2)
        self._http = Server((host, port), type("Bound", (Handler,), {"server_state": self}))
        self.url = f"http://{host}:{self._http.server_address[1]}"
        self.tus_host = tus_host or self.url

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._thread.join()
        self._http.close_connections()
        self._http.server_close()
        self.remove_files()


def main() -> None:
    parser = argparse.ArgumentParser(description="A fake Supabase Storage server.")
    parser.add_argument("--port", type=int, default=5005)
    parser.add_argument("--bucket", action="append", default=[], help="a private bucket; can be given several times")
    parser.add_argument("--key", default="service-key")
    options = parser.parse_args()
    with StorageServer(dict.fromkeys(options.bucket, False), key=options.key, port=options.port) as server:
        print(server.url, flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()


if __name__ == "__main__":
    main()
