"""List the stored objects of a dataset before they are downloaded."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

from trainer.core.dataset import ObjectRef
from trainer.core.errors import DatasetError, ObjectMissing
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


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The objects of a dataset by their path relative to its folder. `entry` is the file of the reference, or None."""

    bucket: str
    folder: str
    entry: str | None
    objects: Mapping[str, ObjectInfo]


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
        return Manifest(bucket=found.ref.bucket, folder=folder, entry=name, objects={_safe(name): found})
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


def difference(before: Mapping[str, ObjectInfo], after: Mapping[str, ObjectInfo]) -> str:
    """Return the name of one object that differs between two listings."""
    names = sorted(before.keys() | after.keys())
    return next((name for name in names if before.get(name) != after.get(name)), "")


def _manifest(store: ObjectStore, root: ObjectRef, entry: str | None, needed: Collection[str] | None) -> Manifest:
    bucket, folder = root.bucket, root.key
    objects: dict[str, ObjectInfo] = {}
    prefixes = [folder] if folder or needed is None else sorted(needed)
    start = len(folder) + 1 if folder else 0
    for prefix in prefixes:
        for info in store.list(replace(root, key=prefix)):
            if start and not info.ref.key.startswith(f"{folder}/"):
                raise DatasetError(
                    f"The storage lists {shown(info.ref.key)}, which is not in the folder {shown(folder)}."
                )
            relpath = info.ref.key[start:]
            top, _, below = relpath.partition("/")
            is_entry = relpath == entry
            if is_entry or (wanted(relpath) and (needed is None or not below or top in needed)):
                objects[_safe(relpath)] = info
            if len(objects) > MAX_OBJECTS:
                raise DatasetError(f"The dataset {shown(f'{bucket}/{folder}')} has more than {MAX_OBJECTS:,} objects.")
    if entry is not None and entry not in objects:
        objects[_safe(entry)] = store.stat(replace(root, key=f"{folder}/{entry}" if folder else entry))
    if not objects:
        raise DatasetError(
            f"The folder {shown(f'{bucket}/{folder}')} contains no images, labels or YAML. Upload the dataset."
        )
    # an empty .txt is a label file of an image without labels
    if empty := [shown(path) for path, info in objects.items() if info.bytes == 0 and suffix(path) != "txt"]:
        more = f" and {len(empty) - 5} more" if len(empty) > 5 else ""
        raise DatasetError(f"{len(empty)} stored files are empty: {', '.join(empty[:5])}{more}. Upload them again.")
    return Manifest(bucket=bucket, folder=folder, entry=entry, objects=dict(sorted(objects.items())))


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
