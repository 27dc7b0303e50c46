"""A source tree on local disk, and the listing that is used to verify a cached tree."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trainer.core.dataset import Finding
from trainer.datasets.findings import finding_of
from trainer.datasets.source.json_lines import read_lines

LISTING = "listing.jsonl"  # in a cached tree, beside the folder FILES
FILES = "files"


@dataclass(frozen=True, kw_only=True)
class Fetched:
    """A complete, read-only source tree on local disk.

    `entry` is the YAML or annotation file of the reference, relative to `root`; None for a folder or an archive.
    `is_private`: the tree is in our cache or staging folder. The tree contains only images, .txt, YAML and JSON files,
    and no symlinks. Its files may be hard links. If `is_private` is False, the tree is the user's folder. The user's
    YAML can name folders outside `root`; `Roots.admit` checks these folders.
    """

    root: Path
    entry: Path | None
    is_private: bool
    findings: tuple[Finding, ...] = ()
    bytes: int = 0  # size of an extracted archive


def write_listing(tree: Path, findings: tuple[Finding, ...]) -> None:
    """Write the listing of the files in `tree`/FILES, before the tree is put into the cache."""
    present = sorted(_below(str(tree / FILES), ""))
    with (tree / LISTING).open("w", encoding="utf-8") as out:
        out.write(json.dumps({"files": len(present), "findings": [asdict(finding) for finding in findings]}) + "\n")
        for relpath, found in present:
            out.write(json.dumps([relpath, found.st_size, found.st_mtime_ns]) + "\n")


def read_tree(tree: Path) -> Fetched | None:
    """Return the cached tree, or None if a file is missing or changed, or if the listing is damaged."""
    try:
        return _read(tree)
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError):
        return None


def _read(tree: Path) -> Fetched | None:
    root = str(tree / FILES)
    lines = read_lines(tree / LISTING)
    head: dict[str, Any] = next(lines, {})
    present = total = 0
    for line in lines:
        relpath, size, modified = line
        found = os.lstat(f"{root}/{relpath}")
        if (found.st_size, found.st_mtime_ns) != (size, modified):
            return None
        present += 1
        total += size
    if present != head["files"]:
        return None
    findings = tuple(map(finding_of, head["findings"]))
    return Fetched(root=Path(root), entry=None, is_private=True, findings=findings, bytes=total)


def _below(folder: str, prefix: str) -> Iterator[tuple[str, os.stat_result]]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield from _below(entry.path, f"{prefix}{entry.name}/")
            else:
                yield f"{prefix}{entry.name}", entry.stat(follow_symlinks=False)
