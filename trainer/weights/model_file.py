"""Check `.pt` files and find packaged architectures. Only a training process loads a model; this module does not."""

from __future__ import annotations

import importlib.util
import re
import zipfile
from pathlib import Path

from trainer.core.errors import BadRequest


def is_complete(path: Path) -> bool:
    """Return whether the path is a regular file with the end record of a zip archive, which `torch.save` writes."""
    return path.is_file() and zipfile.is_zipfile(path)  # a named pipe would block `is_zipfile` forever


def is_intact(path: Path) -> bool:
    """Return whether the file is a zip archive and the checksum of each member matches."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (zipfile.BadZipFile, NotImplementedError):
        return False


def checked(path: Path, subject: str) -> Path:
    """Return `path` if the file is a complete, uncompressed PyTorch file.

    Raises BadRequest with a message that starts with `subject`.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, UnicodeDecodeError):
        raise BadRequest(
            f"{subject}: the file is not a complete PyTorch file, because it cannot be read as a zip archive; "
            "upload the file again"
        ) from None
    # torch saves without compression; compressed or overlapping members could expand to a thousand times the file size
    is_compressed = any(member.compress_type != zipfile.ZIP_STORED for member in members)
    if is_compressed or sum(member.file_size for member in members) > path.stat().st_size:
        raise BadRequest(
            f"{subject}: the file has compressed or overlapping members; save the model again with torch.save"
        )
    return path


def packaged_architecture(name: str) -> Path:
    """Return the YAML file of an architecture in Ultralytics, which is not imported. Raises BadRequest."""
    spec = importlib.util.find_spec("ultralytics")
    folders = spec.submodule_search_locations if spec else None
    unsized = re.sub(r"(\d+)[nslmx](?=-|$)", r"\1", name, count=1)
    for folder in folders or ():
        for candidate in (name, unsized):
            found = next(Path(folder, "cfg", "models").rglob(f"{candidate}.yaml"), None)
            if found:
                return found
    raise BadRequest(f"base_model: the installed Ultralytics has no architecture {name}.yaml; choose another model")
