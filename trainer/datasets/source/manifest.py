"""Which stored objects make up a dataset: the complete list, taken before the first byte is downloaded."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from trainer.core.dataset import ObjectRef
from trainer.core.errors import DatasetError, ObjectMissing
from trainer.core.ports import ObjectInfo, ObjectStore
from trainer.core.text import shown
from trainer.datasets.data_yaml import LARGEST_YAML, load_yaml, read_data_yaml
from trainer.datasets.findings import Report
from trainer.datasets.image_kinds import IMAGE_SUFFIXES
from trainer.datasets.source.archive import ENDINGS
from trainer.datasets.source.ndjson import SUFFIXES as NDJSON
from trainer.datasets.source.reference import either_bucket
from trainer.datasets.untrusted import Limits, safe_name

YAML = ("yaml", "yml")
SUFFIXES = frozenset({*IMAGE_SUFFIXES, *YAML, "txt", "json"})
MAY_BE_EMPTY = frozenset({"txt"})  # a label file without lines says that nothing is on the image
SKIPPED_FOLDERS = frozenset({"thumbnails", "__MACOSX"})
MOST_OBJECTS = 5_000_000


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """A dataset's objects by their path below its folder. `entry` is the one that was named, None for a folder."""

    bucket: str
    folder: str
    entry: str | None
    objects: Mapping[str, ObjectInfo]


def suffix(name: str) -> str:
    return PurePosixPath(name).suffix[1:].lower()


def wanted(relpath: str) -> bool:
    """Whether a file can be part of a dataset. Thumbnails, caches, arrays and hidden files are not."""
    parts = relpath.split("/")
    return (
        suffix(relpath) in SUFFIXES
        and SKIPPED_FOLDERS.isdisjoint(parts[:-1])
        and not any(part.startswith(".") and part not in {".", ".."} for part in parts)  # those two are refused
    )


def locate(store: ObjectStore, ref: ObjectRef, datasets_bucket: str) -> ObjectInfo | ObjectRef:
    """The object that `ref` means, or the folder when there is no such object. `ObjectMissing` when there is neither."""
    candidates = either_bucket(ref, datasets_bucket)
    for candidate in candidates:
        try:
            return store.stat(candidate)
        except ObjectMissing:
            if _is_folder(store, candidate):
                return candidate
    looked = " nor ".join(f"{c.key!r} in bucket {c.bucket!r}" for c in candidates)
    raise ObjectMissing(f"data_yaml: there is neither {looked}; check the path and upload the dataset.")


def take_manifest(store: ObjectStore, found: ObjectInfo | ObjectRef, bring: Callable[[ObjectInfo], Path]) -> Manifest:
    """List the dataset that was located: the folder itself, or the folder of the object, as far as it is needed.

    `bring` gives an object as a file on disk, to look into a YAML.
    Raises `DatasetError` for an empty object that may not be empty, or for a name that is not safe.
    """
    if isinstance(found, ObjectRef):
        return _manifest(store, found, None, None)
    folder, _, name = found.ref.key.rpartition("/")
    if suffix(name) in IMAGE_SUFFIXES:
        raise DatasetError(f"data_yaml: {shown(found.ref.key)} is an image; name the dataset's YAML or its folder.")
    if suffix(name) in NDJSON:
        return Manifest(bucket=found.ref.bucket, folder=folder, entry=name, objects={_safe(name): found})
    if found.bytes > LARGEST_YAML and suffix(name) != "json":
        raise DatasetError(
            f"data_yaml: {shown(found.ref.key)} is larger than {LARGEST_YAML >> 20} MiB, which no dataset YAML is; "
            f"an archive must end in {', '.join(ENDINGS)}.",
        )
    # a YAML may have any name, so whatever is nothing else is read as one
    needed = None if suffix(name) == "json" else _named_folders(bring(found))
    if not folder and needed is None:
        raise DatasetError(
            f"data_yaml: {shown(name)} lies at the top of the bucket {found.ref.bucket!r}, where everything else lies too; "
            "put the dataset into a folder of its own.",
        )
    return _manifest(store, replace(found.ref, key=folder), name, needed)


def listed_again(
    store: ObjectStore,
    found: ObjectInfo | ObjectRef,
    bring: Callable[[ObjectInfo], Path],
) -> Manifest:
    """The manifest as it is now."""
    if isinstance(found, ObjectInfo):
        found = store.stat(found.ref)  # the YAML itself may be what was edited
    return take_manifest(store, found, bring)


def identity_of(info: ObjectInfo) -> str:
    """What the cache calls the object's content."""
    return f"{info.ref.store}\n{info.ref.bucket}\n{info.ref.key}\n{info.etag}\n{info.bytes}"


def difference(before: Mapping[str, ObjectInfo], after: Mapping[str, ObjectInfo]) -> str:
    """The name of one object that is not the same in both listings."""
    names = sorted(before.keys() | after.keys())
    return next((name for name in names if before.get(name) != after.get(name)), "")


def folders_named(entries: Iterable[str]) -> set[str] | None:
    """The first folders that a YAML's entries name, with the label folders that belong to them; None: could be all."""
    folders: set[str] = set()
    for entry in entries:
        parts = [part for part in entry.replace("\\", "/").split("/") if part not in {"", ".", ".."}]
        if entry.startswith("/") or not parts or suffix(entry) == "txt":
            return None
        folders.add(parts[0])
    return folders | {"images", "labels"}


def _named_folders(yaml: Path) -> set[str] | None:
    values = load_yaml(yaml, Report())
    data = read_data_yaml(values, Report())
    if data.path not in {None, ".", "./"} or not data.splits:
        return None
    return folders_named(entry for entries in data.splits.values() for entry in entries)


def _manifest(
    store: ObjectStore,
    root: ObjectRef,
    entry: str | None,
    needed: set[str] | None,
) -> Manifest:
    bucket, folder = root.bucket, root.key
    objects: dict[str, ObjectInfo] = {}
    prefixes = [folder] if folder or needed is None else sorted(needed)
    start = len(folder) + 1 if folder else 0
    for prefix in prefixes:
        for info in store.list(replace(root, key=prefix)):
            if start and not info.ref.key.startswith(f"{folder}/"):
                raise DatasetError(f"The storage lists {shown(info.ref.key)} below {shown(folder)}, where it is not.")
            relpath = info.ref.key[start:]
            top, _, below = relpath.partition("/")
            is_entry = relpath == entry
            if is_entry or (wanted(relpath) and (needed is None or not below or top in needed)):
                objects[_safe(relpath)] = info
            if len(objects) > MOST_OBJECTS:
                raise DatasetError(f"The dataset {shown(f'{bucket}/{folder}')} has more than {MOST_OBJECTS:,} objects.")
    if entry is not None and entry not in objects:
        objects[_safe(entry)] = store.stat(replace(root, key=f"{folder}/{entry}" if folder else entry))
    if not objects:
        raise DatasetError(
            f"The folder {shown(f'{bucket}/{folder}')} holds no images, labels or YAML; upload the dataset."
        )
    _refuse_empty(objects)
    return Manifest(bucket=bucket, folder=folder, entry=entry, objects=dict(sorted(objects.items())))


def _refuse_empty(objects: Mapping[str, ObjectInfo]) -> None:
    empty = [path for path, info in objects.items() if info.bytes == 0 and suffix(path) not in MAY_BE_EMPTY]
    if empty:
        more = f" and {len(empty) - 5} more" if len(empty) > 5 else ""
        raise DatasetError(
            f"{len(empty)} stored files are empty: {', '.join(shown(e) for e in empty[:5])}{more}; upload them again.",
        )


def _safe(relpath: str) -> str:
    if safe_name(relpath, Limits(), "The stored dataset") != relpath:
        raise DatasetError(f"The stored dataset: the name {shown(relpath)} is not a plain path; rename it.")
    return relpath


def _is_folder(store: ObjectStore, ref: ObjectRef) -> bool:
    try:
        return next(iter(store.list(ref)), None) is not None
    except ObjectMissing:
        return False
