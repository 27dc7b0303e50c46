"""The job that reads which folders of a stored dataset its YAML needs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from trainer.core.stop import StopSignal
from trainer.datasets.data_yaml import load_yaml, read_data_yaml
from trainer.datasets.decoder import Access, Room
from trainer.datasets.findings import Report
from trainer.datasets.source.manifest import suffix

MAX_FOLDERS = 1000


@dataclass(frozen=True, kw_only=True)
class Folders:
    """The top folders that a YAML and its labels use. None: every folder can be needed."""

    names: tuple[str, ...] | None

    def __post_init__(self) -> None:
        if any(name in {"", ".", ".."} or "/" in name for name in self.names or ()):
            raise ValueError("not the name of a folder")


@dataclass(frozen=True, kw_only=True)
class NeededFolders:
    """Read the top folders that a YAML uses. `name` is its name in messages."""

    yaml: str
    name: str

    @property
    def access(self) -> Access:
        return Access(read=(self.yaml,))

    def run(self, stop: StopSignal, room: Room) -> Folders:
        data = read_data_yaml(load_yaml(Path(self.yaml), Report(), self.name), Report())
        if data.path not in {None, ".", "./"} or not data.splits:
            return Folders(names=None)
        folders = {"images", "labels"}
        for entry in (entry for entries in data.splits.values() for entry in entries):
            parts = [part for part in entry.replace("\\", "/").split("/") if part not in {"", ".", ".."}]
            if entry.startswith("/") or not parts or suffix(entry) == "txt":
                return Folders(names=None)
            folders.add(parts[0])
        return Folders(names=tuple(sorted(folders)) if len(folders) <= MAX_FOLDERS else None)
