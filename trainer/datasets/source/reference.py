"""Parse a dataset reference: a path, an object in a bucket or an http(s) URL.

| text                                    | meaning                                                                 |
|-----------------------------------------|-------------------------------------------------------------------------|
| `/data/a/data.yaml`                     | a path on this host                                                     |
| `a/data.yaml`                           | a path inside the dataset root                                          |
| `storage:x/y/data.yaml`                 | the object `x/y/data.yaml` in the default bucket; if it does not exist: |
|                                         | `y/data.yaml` in the bucket `x`                                         |
| our own storage URL (public, sign, …)   | the object of this URL; the token of a signed URL is not needed         |
| any other `http(s)://`                  | the URL itself                                                          |
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import SplitResult, unquote, urlsplit

from trainer.core.dataset import DatasetRef, DiskRef, HttpRef, ObjectRef
from trainer.core.errors import DatasetError, HostUnfit, raise_if_disk_is_broken
from trainer.core.text import shown

MAX_LENGTH = 4096  # characters, the limit of Linux for a path
FORMS = (
    "give an absolute path, a path inside the dataset root, storage:BUCKET/PATH, or an http(s) URL "
    "of a YAML, an archive or an NDJSON file"
)
_OBJECT_URL = re.compile(r"/storage/v1/(?:object|render/image)/(?:(?:public|sign|authenticated)/)?([^/]+)/(.+)")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")


def parse_reference(
    text: str, *, dataset_root: Path, datasets_bucket: str, storage_base_url: str | None = None
) -> DatasetRef:
    """Parse one dataset reference. `Fetcher` checks that the source exists and is readable.

    `storage_base_url` is the URL of our own Supabase (or storage) host. Raises `DatasetError`.
    """
    text = _plain(text)
    lower = text.lower()
    if lower.startswith("storage:"):
        return ObjectRef(bucket=datasets_bucket, key=object_key(text[len("storage:") :], text))
    if lower.startswith(("http://", "https://")):
        return _url(text, storage_base_url)
    if lower.startswith("s3://"):
        raise DatasetError("data_yaml: s3:// datasets are not supported yet; copy the dataset into the storage bucket.")
    if _SCHEME.match(text):
        scheme = text.split(":", 1)[0]
        raise DatasetError(f"data_yaml: {shown(scheme + ':')} is not a supported kind of reference; {FORMS}.")
    if text.startswith("~"):
        raise DatasetError(f"data_yaml: {shown(text)} starts with ~, which this service does not expand; {FORMS}.")
    return DiskRef(path=str(dataset_root / text))


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


def either_bucket(ref: ObjectRef, datasets_bucket: str) -> tuple[ObjectRef, ...]:
    """Return the objects that a `storage:` reference can mean, in order of preference."""
    first, _, rest = ref.key.partition("/")
    if ref.bucket != datasets_bucket or not rest:
        return (ref,)
    return ref, replace(ref, bucket=first, key=rest)


@dataclass(frozen=True)
class Roots:
    """The folders that a run is allowed to read. The dataset root is the first folder."""

    dataset_root: Path
    extra: tuple[Path, ...] = ()

    def admit(self, path: Path | str) -> Path:
        """Return the real path of `path`. Raises `DatasetError` if the path does not exist or is outside the roots."""
        if "\0" in str(path):
            raise DatasetError(f"data_yaml: {shown(str(path))} contains a NUL character.")
        try:
            real = (self.dataset_root / path).resolve(strict=True)
        except (OSError, RuntimeError) as error:  # RuntimeError: a loop of symlinks
            self._require_below(Path(self.dataset_root / path).parent, path)
            self._require_mounted(self.dataset_root / path)
            raise_if_disk_is_broken(error, f"data_yaml: {shown(str(path))}")
            raise DatasetError(
                f"data_yaml: {shown(str(path))} does not exist or cannot be read on this host. "
                "Check the path and its permissions."
            ) from None
        self._require_below(real, path)
        return real

    def _require_below(self, real: Path, path: Path | str) -> None:
        try:
            real = real.resolve()
        except (OSError, RuntimeError):
            real = Path("/")
        roots = (root.resolve() for root in (self.dataset_root, *self.extra))
        if not any(real.is_relative_to(root) for root in roots):
            raise DatasetError(
                f"data_yaml: {shown(str(path))} is outside the allowed folders. Move it into "
                "DATASET_ROOT, or let the operator add its folder to EXTRA_DATASET_ROOTS."
            )

    def _require_mounted(self, path: Path) -> None:
        """Raise `HostUnfit` if an extra root is missing on this host. The folder can exist on other hosts."""
        for root in self.extra:
            if path.is_relative_to(root) and not root.exists():
                raise HostUnfit(
                    f"{root}, one of EXTRA_DATASET_ROOTS, does not exist. Mount it on this host or create it."
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
        base_path = _split(storage_base_url).path.rstrip("/").removesuffix("/storage/v1")
        match = _OBJECT_URL.fullmatch(url.path.removeprefix(base_path))
        if match:
            return ObjectRef(bucket=unquote(match[1]), key=object_key(_plain(unquote(match[2])), text))
    return HttpRef(url=text)


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
