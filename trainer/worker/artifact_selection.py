"""Selection of the files of a training that are published, within limits of their number, size and names.

The training process made these files, so hidden files, links, unreadable folders and deep folders are left out.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from trainer.core.json_text import storable
from trainer.core.ports import ObjectStore
from trainer.core.run_folder import CHECKPOINTS, MANIFEST, RUN_LOG, WEIGHTS
from trainer.core.text import one_line
from trainer.disk.untrusted_folder import LARGEST_FILE, FileEntry, UntrustedFolder

DEEPEST = 16  # levels of folders
MOST_FILES = 5_000  # artifacts of an attempt; the row lists all of them
MOST_BYTES = 64 * 2**30  # total size of the artifacts of an attempt
MOST_ENTRIES = 50_000  # entries that are read in the folder of a training
LONGEST_KEY = 900  # bytes after the attempt's prefix; S3 allows 1024 bytes in total
LONGEST_SEGMENT = 255  # bytes between two slashes; the limit of a file system
_MOST_NAMED = 3  # files in a message
_MOST_REASONS = 20  # messages of one upload; the reasons of a store can contain the names of files
_LONGEST_NAME = 300  # characters of a file name in a message

_WRITTEN_HERE = {RUN_LOG, MANIFEST}  # names of artifacts that the service writes
_TOO_LONG = f"its name has more than {LONGEST_KEY} bytes, or more than {LONGEST_SEGMENT} bytes between two slashes"
_CONTROLS = "its name contains control characters, which a web page or a terminal could interpret"
_TOO_LARGE = f"it is larger than the maximum of {LARGEST_FILE >> 30} GiB"
_TOO_MANY = f"a run publishes at most {MOST_FILES} files and {MOST_BYTES >> 30} GiB"
_NOT_LISTED = (
    f"Some files are not published and stay on this host: only {MOST_ENTRIES} entries and {DEEPEST} levels of folders "
    "of a training are read."
)


@dataclass
class Selection:
    """The published files by name, and the number and the first names of the other files by reason."""

    files: dict[str, FileEntry] = field(default_factory=dict)
    is_complete: bool = True
    _left_out: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def leave_out(self, name: str, reason: str) -> None:
        self._left_out[reason].append(name)

    def messages(self) -> Iterator[str]:
        """Yield a message for each reason why files are left out, at most `_MOST_REASONS` and a summary of the rest."""
        reasons = list(self._left_out.items())
        for reason, names in reasons[:_MOST_REASONS]:
            shown = ", ".join(one_line(name[:_LONGEST_NAME]) for name in names[:_MOST_NAMED])
            if len(names) == 1:
                yield f"{shown} is not published and stays on this host: {reason}"
            else:
                more = "" if len(names) <= _MOST_NAMED else ", …"
                yield f"{len(names)} files are not published and stay on this host ({shown}{more}): {reason}"
        if others := sum(len(names) for _, names in reasons[_MOST_REASONS:]):
            yield f"{others} more files are not published and stay on this host, for other reasons."
        if not self.is_complete:
            yield _NOT_LISTED


def select(output: UntrustedFolder, store: ObjectStore) -> Selection:
    """Return the files to publish. The weights are first, because a time limit can end the upload.

    A file with the same name as the weights is left out. If a folder has the same name as a file, the files in the
    folder are left out, because not every store supports both names.
    """
    listings = [
        output.listing(start, depth=DEEPEST, entries=MOST_ENTRIES, is_wanted=_is_published) for start in (WEIGHTS, ".")
    ]
    by_name: dict[str, FileEntry] = {}
    for entry in (entry for listing in listings for entry in sorted(listing.files, key=_order)):
        by_name.setdefault(artifact_name(entry.path), entry)
    selection = Selection(is_complete=all(listing.is_complete for listing in listings))
    total = 0
    for name, entry in by_name.items():
        if any(str(parent) in by_name for parent in PurePosixPath(name).parents):
            continue
        if reason := _unfit(name, entry, store):
            selection.leave_out(name, reason)
        elif len(selection.files) >= MOST_FILES or total + entry.bytes > MOST_BYTES:
            selection.leave_out(name, _TOO_MANY)
        else:
            selection.files[name] = entry
            total += entry.bytes
    return selection


def artifact_name(path: str) -> str:
    """Return the name of an artifact: `best.pt` for `weights/best.pt`, the relative path for other files."""
    return path.removeprefix(f"{WEIGHTS}/")


def _is_published(path: str) -> bool:
    name = path.rpartition("/")[2]
    return not name.startswith(".") and name not in _WRITTEN_HERE and path != CHECKPOINTS


def _order(entry: FileEntry) -> tuple[int, str]:
    """Return the sort key: results and plots at the top are more important than many files in a folder."""
    return entry.path.count("/"), entry.path


def _unfit(name: str, entry: FileEntry, store: ObjectStore) -> str | None:
    """Return the reason why a file is not published, or None."""
    key = store.key(name).encode()
    if len(key) > LONGEST_KEY or max(map(len, key.split(b"/"))) > LONGEST_SEGMENT:
        return _TOO_LONG
    text = storable(name)  # a name that is not UTF-8 is published under an escaped key
    if one_line(text) != text:
        return _CONTROLS
    return _TOO_LARGE if entry.bytes > LARGEST_FILE else None
