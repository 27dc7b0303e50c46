"""Helpers that add entries to the content cache."""

import os
import time


def put(cache, identity, content=b"x" * 100, *, age=0.0):
    with cache.temporary() as path:
        path.write_bytes(content)
        stored = cache.put(identity, path)
    if age:
        os.utime(stored, (time.time() - age, stored.stat().st_mtime))
    return stored


def put_in_batch(cache, batch, identity, content=b"x" * 100):
    with cache.temporary() as path:
        path.write_bytes(content)
        batch.put(identity, path)


def put_tree(cache, identity, *, age=0.0, size=100):
    with cache.temporary() as path:
        (path / "files").mkdir(parents=True)
        (path / "files/a.txt").write_bytes(b"x" * size)
        stored = cache.put_tree(identity, path, size, is_whole=lambda tree: (tree / "files/a.txt").exists())
    if age:
        os.utime(stored, (time.time() - age, stored.stat().st_mtime))
    return stored
