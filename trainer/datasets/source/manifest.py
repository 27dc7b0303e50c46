"""List the stored objects of a dataset before they are downloaded."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import zip_longest
from pathlib import PurePosixPath
from typing import TypeAlias

from trainer.core.dataset import ObjectRef
from trainer.core.errors import DatasetError, ObjectMissing
from trainer.core.packed import Packed
from trainer.core.ports import ObjectInfo, ObjectStore
from trainer.core.text import shown
from trainer.datasets.data_yaml import MAX_YAML_BYTES
from trainer.datasets.image_kinds import IMAGE_SUFFIXES
from trainer.datasets.source.archive import ENDINGS
from trainer.datasets.source.ndjson import SUFFIXES as NDJSON
from trainer.datasets.untrusted import Limits, safe_name

# files that describe a dataset but do not name its folders, so the whole folder of the file is fetched
ANNOTATION_SUFFIXES = frozenset({"json"})
SUFFIXES = frozenset({*IMAGE_SUFFIXES, *ANNOTATION_SUFFIXES, "yaml", "yml", "txt"})
SKIPPED_FOLDERS = frozenset({"thumbnails", "__MACOSX"})
MAX_OBJECTS = 5_000_000
StoredRow: TypeAlias = tuple[str, str, int]


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The objects of a dataset. `entry` is the path of the file of the reference, or None.

    Paths are relative to the folder `root`. `rows` has the path, the ETag and the size of each object.
    """

    root: ObjectRef
    entry: str | None
    rows: Packed[StoredRow]

    @property
    def place(self) -> str:
        """The bucket and the folder, for messages."""
        return f"{self.root.bucket}/{self.root.key}"

    @property
    def objects(self) -> Iterator[tuple[str, ObjectInfo]]:
        """Yield the path and the description of each object."""
        return ((row[0], self.info(row)) for row in self.rows)

    def info(self, row: StoredRow) -> ObjectInfo:
        """Return the description of the object of a row."""
        path, etag, size = row
        return ObjectInfo(ref=replace(self.root, key=_key(self.root, path)), bytes=size, etag=etag)

    @cached_property
    def digest(self) -> int:
        """A number that two listings share only if they have the same objects, in any order."""
        lines = (repr(row).encode("utf-8", "surrogatepass") for row in self.rows)
        return sum(int.from_bytes(hashlib.sha256(line).digest()) for line in lines)


def suffix(name: str) -> str:
    return PurePosixPath(name).suffix[1:].lower()


def wanted(relpath: str) -> bool:
    """Return whether a file can be part of a dataset. Thumbnails, caches, arrays and hidden files are ignored."""
    parts = relpath.split("/")
    return (
        suffix(relpath) in SUFFIXES
        and SKIPPED_FOLDERS.isdisjoint(parts[:-1])
        and not any(part.startswith(".") and part not in {".", ".."} for part in parts)  # `_safe` rejects `.` and `..`
    )


def locate(store: ObjectStore, candidates: Sequence[ObjectRef]) -> ObjectInfo | ObjectRef:
    """Return the first of the candidates that is an object or a folder. Raises `ObjectMissing` if none exists."""
    for candidate in candidates:
        try:
            return store.stat(candidate)
        except ObjectMissing:
            if _is_folder(store, candidate):
                return candidate
    looked = " and no ".join(f"{c.key!r} in bucket {c.bucket!r}" for c in candidates)
    raise ObjectMissing(
        f"data_yaml: the storage has no {looked}. Check the path, or upload the dataset. "
        "A run can read only the buckets in ALLOWED_BUCKETS."
    )


def take_manifest(
    store: ObjectStore, found: ObjectInfo | ObjectRef, needed_folders: Callable[[ObjectInfo], Collection[str] | None]
) -> Manifest:
    """List the objects of a located dataset: a whole folder, or the folders that a YAML needs.

    `needed_folders` returns the folders that a YAML needs, or None for all (see `NeededFolders`).
    Raises `DatasetError` for unsafe names, and for empty objects other than .txt files.
    """
    if isinstance(found, ObjectRef):
        return _manifest(store, found, None, None)
    folder, _, name = found.ref.key.rpartition("/")
    if suffix(name) in IMAGE_SUFFIXES:
        raise DatasetError(
            f"data_yaml: {shown(found.ref.key)} is an image. Name the YAML or the folder of the dataset."
        )
    if suffix(name) in NDJSON:
        rows = Packed([(_safe(name), found.etag, found.bytes)])
        return Manifest(root=replace(found.ref, key=folder), entry=name, rows=rows)
    if found.bytes > MAX_YAML_BYTES and suffix(name) not in ANNOTATION_SUFFIXES:
        raise DatasetError(
            f"data_yaml: {shown(found.ref.key)} is larger than {MAX_YAML_BYTES >> 20} MiB, the limit for a YAML. "
            f"The name of an archive must end in {', '.join(ENDINGS)}."
        )
    # a YAML can have any name, so a file of any other kind is read as a YAML
    needed = None if suffix(name) in ANNOTATION_SUFFIXES else needed_folders(found)
    if not folder and needed is None:
        raise DatasetError(
            f"data_yaml: {shown(name)} is at the top level of the bucket {found.ref.bucket!r}, not in a folder. "
            "Put the dataset into its own folder."
        )
    return _manifest(store, replace(found.ref, key=folder), name, needed)


def identity_of(info: ObjectInfo) -> str:
    """Return the identity of the object's content in the cache."""
    return f"{info.ref.store}\n{info.ref.bucket}\n{info.ref.key}\n{info.etag}\n{info.bytes}"


def difference(before: Manifest, after: Manifest) -> str:
    """Return the path of one object that differs between two listings."""
    pairs = zip_longest(before.rows, after.rows)
    return next(((new or old)[0] for old, new in pairs if old != new), "")


def _manifest(store: ObjectStore, root: ObjectRef, entry: str | None, needed: Collection[str] | None) -> Manifest:
    empty: list[str] = []
    rows = Packed(_listed(store, root, entry, needed, empty))
    shown_place = shown(f"{root.bucket}/{root.key}")
    if not rows:
        raise DatasetError(f"The folder {shown_place} contains no images, labels or YAML. Upload the dataset.")
    if empty:
        more = f" and {len(empty) - 5} more" if len(empty) > 5 else ""
        raise DatasetError(f"{len(empty)} stored files are empty: {', '.join(empty[:5])}{more}. Upload them again.")
    return Manifest(root=root, entry=entry, rows=rows)


def _listed(
    store: ObjectStore, root: ObjectRef, entry: str | None, needed: Collection[str] | None, empty: list[str]
) -> Iterator[StoredRow]:
    """Yield the rows of a dataset. Names of empty files are added to `empty`."""
    found, is_entry_found = 0, entry is None
    for info in _objects(store, root, needed):
        path = info.ref.key[len(_key(root, "")) :]
        top, _, below = path.partition("/")
        if path != entry and not (wanted(path) and (needed is None or not below or top in needed)):
            continue
        found, is_entry_found = found + 1, is_entry_found or path == entry
        if found > MAX_OBJECTS:
            raise DatasetError(
                f"The dataset {shown(f'{root.bucket}/{root.key}')} has more than {MAX_OBJECTS:,} objects."
            )
        # an empty .txt is a label file of an image without labels
        if info.bytes == 0 and suffix(path) != "txt":
            empty.append(shown(path) if len(empty) < 5 else "")
        yield _safe(path), info.etag, info.bytes
    if entry is not None and not is_entry_found:
        info = store.stat(replace(root, key=_key(root, entry)))
        yield _safe(entry), info.etag, info.bytes


def _objects(store: ObjectStore, root: ObjectRef, needed: Collection[str] | None) -> Iterator[ObjectInfo]:
    for prefix in [root.key] if root.key or needed is None else sorted(needed):
        for info in store.list(replace(root, key=prefix)):
            if not info.ref.key.startswith(_key(root, "")):
                raise DatasetError(
                    f"The storage lists {shown(info.ref.key)}, which is not in the folder {shown(root.key)}."
                )
            yield info


def _key(root: ObjectRef, path: str) -> str:
    return f"{root.key}/{path}" if root.key else path


def _safe(relpath: str) -> str:
    if safe_name(relpath, Limits(), "The stored dataset") != relpath:
        raise DatasetError(
            f"The stored dataset: the name {shown(relpath)} must be in Unicode NFC, without backslashes and without "
            "empty or '.' segments. Rename it."
        )
    return relpath


def _is_folder(store: ObjectStore, ref: ObjectRef) -> bool:
    try:
        return next(iter(store.list(ref)), None) is not None
    except ObjectMissing:
        return False
