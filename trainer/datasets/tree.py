"""A source tree on local disk, and how one that lies in the cache proves that it is still whole."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from trainer.core.dataset import Finding

LISTING = "listing.jsonl"  # in a cached tree, beside the folder FILES
FILES = "files"


@dataclass(frozen=True, kw_only=True)
class SourceFile:
    """One file of a source tree. `relpath` uses `/`; `identity` changes when the content does."""

    relpath: str
    path: Path
    bytes: int
    identity: str


@dataclass(frozen=True, kw_only=True)
class Fetched:
    """A source tree that is complete on local disk. Nobody may write into it.

    `entry` is what the reference named (a YAML, an annotations file), relative to `root`; None for a folder or an
    archive: the recognisers look for it then. When `is_private`, the tree is ours (cache or staging), holds only what
    a dataset can consist of (images, .txt, YAML, JSON), `files` lists all of it by name and `identity` is a sha-256
    over their names and identities; images may be hard-linked. Otherwise it is the user's own folder: `files` is empty
    and `identity` says nothing about its content. A user's YAML may name folders outside `root`: `Roots.admit` decides
    about those.
    """

    root: Path
    entry: Path | None
    files: tuple[SourceFile, ...]
    identity: str
    is_private: bool
    findings: tuple[Finding, ...] = ()


def users_tree(root: Path, entry: str | None) -> Fetched:
    """The user's own folder, left as it is."""
    identity = hashlib.sha256(f"{root}\n{entry}".encode(errors="surrogateescape")).hexdigest()
    return Fetched(root=root, entry=Path(entry) if entry else None, files=(), identity=identity, is_private=False)


def private_tree(
    root: Path, entry: str | None, files: tuple[SourceFile, ...], findings: tuple[Finding, ...] = (),
) -> Fetched:
    """A tree of our own."""
    files = tuple(sorted(files, key=lambda file: file.relpath))
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.relpath}\n{file.bytes}\n{file.identity}\n".encode())
    return Fetched(
        root=root, entry=Path(entry) if entry else None, files=files, identity=digest.hexdigest(), is_private=True,
        findings=findings,
    )


def write_listing(tree: Path, identity: str, findings: tuple[Finding, ...]) -> None:
    """Write down what is below `tree`/FILES, before the tree goes into the cache."""
    with (tree / LISTING).open("x", encoding="utf-8") as out:
        notes = [[f.level, f.code, f.message, f.count, list(f.examples)] for f in findings]
        out.write(json.dumps([identity, notes]) + "\n")
        for relpath, found in sorted(_below(str(tree / FILES), "")):
            out.write(json.dumps([relpath, found.st_size, found.st_mtime_ns]) + "\n")


def read_tree(tree: Path) -> Fetched | None:
    """The cached tree, or None when a file of it is missing or was written to."""
    root = tree / FILES
    files = []
    with (tree / LISTING).open(encoding="utf-8") as lines:
        identity, notes = json.loads(next(lines))
        for line in lines:
            relpath, size, modified = json.loads(line)
            path = root / relpath
            try:
                found = path.lstat()
            except (FileNotFoundError, NotADirectoryError):
                return None
            if (found.st_size, found.st_mtime_ns) != (size, modified):
                return None
            files.append(SourceFile(relpath=relpath, path=path, bytes=size, identity=f"{identity}\n{relpath}"))
    findings = tuple(
        Finding(level=level, code=code, message=message, count=count, examples=tuple(examples))
        for level, code, message, count, examples in notes
    )
    return private_tree(root, None, tuple(files), findings)


def _below(folder: str, prefix: str) -> Iterator[tuple[str, os.stat_result]]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield from _below(entry.path, f"{prefix}{entry.name}/")
            else:
                yield f"{prefix}{entry.name}", entry.stat(follow_symlinks=False)
