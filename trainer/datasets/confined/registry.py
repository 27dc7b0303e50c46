"""The jobs that a confined process can execute, by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trainer.datasets.decoder import Job
from trainer.datasets.inspection import Inspect
from trainer.datasets.source.extraction import Extract
from trainer.datasets.source.image_lists import ReadEntries, ReadLists
from trainer.datasets.source.ndjson_export import ReadExport
from trainer.datasets.source.yaml_folders import NeededFolders

JOBS: Mapping[str, type[Job[Any]]] = {
    job.__name__: job for job in (Extract, Inspect, NeededFolders, ReadEntries, ReadExport, ReadLists)
}
