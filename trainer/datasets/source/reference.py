"""Parse a dataset reference: a path, an object in a bucket or an http(s) URL.

| text                                    | meaning                                                                 |
|-----------------------------------------|-------------------------------------------------------------------------|
| `/data/a/data.yaml`                     | a path on this host                                                     |
| `a/data.yaml`                           | a path inside the dataset root                                          |
| `storage:x/y/data.yaml`                 | the object `x/y/data.yaml` in the default bucket; if it does not exist: |
|                                         | `y/data.yaml` in the bucket `x`, if `x` is an allowed bucket            |
| our own storage URL (public, sign, …)   | the object of this URL; the token of a signed URL is not needed         |
| any other `http(s)://`                  | the URL itself                                                          |

A row is untrusted: it can name only allowed buckets, and no folder of the service itself.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection
from dataclasses import KW_ONLY, dataclass, replace
from urllib.parse import SplitResult, unquote, urlsplit

from trainer.core.dataset import DatasetRef, DiskRef, HttpRef, ObjectRef
from trainer.core.errors import DatasetError
from trainer.core.text import shown
from trainer.datasets.source.roots import Roots

MAX_LENGTH = 4096  # characters, the limit of Linux for a path
FORMS = (
    "give an absolute path, a path inside the dataset root, storage:BUCKET/PATH, or an http(s) URL "
    "of a YAML, an archive or an NDJSON file"
)
_OBJECT_PATH = re.compile(r"/storage/v1/(?:object|render/image)/(?:(?:public|sign|authenticated)/)?([^/]+)/(.+)")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")


def parse_reference(text: str, rules: ReferenceRules, owner: str | None = None) -> DatasetRef:
    """Parse one dataset reference. `Fetcher` checks that the source exists and is readable.

    `owner` is the `created_by` of the row. Raises `DatasetError`.
    """
    text = _plain(text)
    lower = text.lower()
    if lower.startswith("storage:"):
        ref = ObjectRef(bucket=rules.datasets_bucket, key=object_key(text[len("storage:") :], text))
        return _in_folder(ref, rules.buckets, owner_folder(owner), text) if rules.by_owner else ref
    if lower.startswith(("http://", "https://")):
        found = _url(text, rules.storage_url)
        if isinstance(found, ObjectRef):
            rules.require_bucket(found)
            return _in_folder(found, (), owner_folder(owner), text) if rules.by_owner else found
        return found
    if lower.startswith("s3://"):
        raise DatasetError("data_yaml: s3:// datasets are not supported yet; copy the dataset into the storage bucket.")
    if _SCHEME.match(text):
        scheme = text.split(":", 1)[0]
        raise DatasetError(f"data_yaml: {shown(scheme + ':')} is not a supported kind of reference; {FORMS}.")
    if text.startswith("~"):
        raise DatasetError(f"data_yaml: {shown(text)} starts with ~, which this service does not expand; {FORMS}.")
    return DiskRef(path=str(rules.roots.dataset_root / text))


def object_key(key: str, text: str) -> str:
    """Return a key without slashes at its ends. Raises `DatasetError` for an empty, `.` or `..` segment."""
    segments = key.strip("/").split("/")
    if segments == [""]:
        raise DatasetError(f"data_yaml: {shown(text)} does not name an object. Write storage:BUCKET/PATH.")
    if any(segment in {"", ".", ".."} for segment in segments):
        raise DatasetError(
            f"data_yaml: {shown(text)} has an empty, '.' or '..' segment. Write the full path of the object."
        )
    return "/".join(segments)


def owner_folder(created_by: str | None) -> str:
    """Return the folder of a user in each bucket: the `created_by` of the user's rows. Raises `DatasetError`."""
    if not created_by or "/" in created_by or created_by in {".", ".."}:
        raise DatasetError(
            "data_yaml: a row can name only datasets in the folder of its owner, and created_by of this row is not the "
            "name of a folder. Set created_by, or let the operator set DATASETS_BY_OWNER=0."
        )
    return created_by


@dataclass(frozen=True)
class ReferenceRules:
    """What a row can name: files in `roots`, objects of `datasets_bucket` and of the allowed buckets, and URLs.

    `storage_url` is the URL of our own Supabase (or storage) host. If `by_owner` is set, keys must be in the folder of
    the owner of the row.
    """

    roots: Roots
    datasets_bucket: str
    _: KW_ONLY
    storage_url: str | None = None
    allowed_buckets: tuple[str, ...] = ()
    by_owner: bool = False

    @property
    def buckets(self) -> frozenset[str]:
        """The buckets that a row can name."""
        return frozenset({self.datasets_bucket, *self.allowed_buckets})

    def require_bucket(self, ref: ObjectRef) -> None:
        """Raise `DatasetError` if a row must not name the bucket of `ref`."""
        if ref.bucket not in self.buckets:
            raise DatasetError(
                f"data_yaml: the bucket {shown(ref.bucket)} is not allowed for datasets. Upload the dataset to the bucket "
                f"{shown(min(self.buckets))}, or let the operator add the bucket to ALLOWED_BUCKETS."
            )

    def candidates(self, ref: ObjectRef) -> tuple[ObjectRef, ...]:
        """Return the objects that a parsed reference can mean, in order of preference. Raises `DatasetError`."""
        self.require_bucket(ref)
        first, _, rest = ref.key.partition("/")
        # with `by_owner`, the reference was already resolved to a folder of the owner
        if self.by_owner or ref.bucket != self.datasets_bucket or not rest or first not in self.buckets:
            return (ref,)
        return ref, replace(ref, bucket=first, key=rest)

    def is_object_path(self, path: str) -> bool:
        """Return whether the path of a URL on our storage host names an object that a row can name."""
        if self.storage_url is None:
            return False
        decoded = unquote(unquote(path))  # a proxy may decode a path once more than the storage
        match = _OBJECT_PATH.fullmatch(decoded.removeprefix(_base_path(self.storage_url)))
        return match is not None and match[1] in self.buckets and {"", ".", ".."}.isdisjoint(match[2].split("/"))


def _in_folder(ref: ObjectRef, buckets: Collection[str], folder: str, text: str) -> ObjectRef:
    """Return the one object that `ref` means inside `folder`. `buckets` are the buckets that its key can begin with."""
    first, _, rest = ref.key.partition("/")
    named = replace(ref, bucket=first, key=rest) if first in buckets and rest else ref
    for candidate in (named, ref):
        # an object with the name of the folder is outside of it: as a YAML, it could name the folders of other owners
        if candidate.key.startswith(f"{folder}/"):
            return candidate
    raise DatasetError(
        f"data_yaml: {shown(text)} is not in the folder of the owner of this row. Write storage:{shown(folder)[1:-1]}/PATH."
    )


def _plain(text: str) -> str:
    text = text.strip()
    if not text:
        raise DatasetError(f"data_yaml is empty; {FORMS}.")
    if len(text) > MAX_LENGTH:
        raise DatasetError(f"data_yaml has {len(text)} characters, but the limit is {MAX_LENGTH}; {FORMS}.")
    # Cc: control characters; Cf: invisible marks such as changes of the writing direction; Cs: broken surrogates
    if any(unicodedata.category(c) in {"Cc", "Cf", "Cs", "Zl", "Zp"} for c in text):
        raise DatasetError(f"data_yaml: {shown(text)} contains control or invisible characters. Type it again.")
    return text


def _url(text: str, storage_base_url: str | None) -> DatasetRef:
    url = _split(text)
    if storage_base_url and _origin(url) == _origin(_split(storage_base_url)):
        match = _OBJECT_PATH.fullmatch(url.path.removeprefix(_base_path(storage_base_url)))
        if match:
            return ObjectRef(bucket=unquote(match[1]), key=object_key(_plain(unquote(match[2])), text))
    return HttpRef(url=text)


def _base_path(storage_base_url: str) -> str:
    return _split(storage_base_url).path.rstrip("/").removesuffix("/storage/v1")


def _split(text: str) -> SplitResult:
    try:
        url = urlsplit(text)
        _ = url.port
    except ValueError:
        raise DatasetError(f"data_yaml: {shown(text)} is not a valid URL. Correct it.") from None
    if not url.hostname:
        raise DatasetError(f"data_yaml: {shown(text)} has no host name. Correct the URL.")
    return url


def _origin(url: SplitResult) -> tuple[str, int]:
    return (url.hostname or "").rstrip("."), url.port or (443 if url.scheme == "https" else 80)
