"""Measure the time to read the labels of a large dataset: from the label table, and with a scan of the files.

python -m benchmarks.labels [--tiny]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.datasets import OnDisk, make
from benchmarks.figures import Figure
from benchmarks.photos import BATCH, environment
from trainer.core.dataset import DatasetOrder, PreparedDataset
from trainer.core.stop import StopSignal
from trainer.datasets.decoder import here
from trainer.datasets.prepare import FetchedDatasets
from trainer.datasets.source.reference import ReferenceRules
from trainer.datasets.source.roots import Roots


def figures(*, tiny: bool) -> Iterator[Figure]:
    count = 100 if tiny else 50_000
    with tempfile.TemporaryDirectory() as name:
        seconds = measure(Path(name).resolve(), count)
    yield Figure(
        what=f"time of the training process to read the labels of {count:,} images",
        target="≤ 2 s for 50,000 images",
        measured=f"{seconds['table']:.1f} s from the label table, including the scan of 8 images per split that verifies "
        "the table",
        met=seconds["table"] <= 2.0,
        peer=f"Ultralytics' scan: {seconds['scan']:.1f} s",
        why="the listing of the images takes most of the time",
    )


def measure(folder: Path, count: int) -> dict[str, float]:
    """Create a dataset and return the seconds to read its labels, from the table and with a scan."""
    make(folder / "many", count, 64)
    order = DatasetOrder(sources=(str(folder / "many"),))
    datasets = FetchedDatasets(OnDisk(is_private=True), ReferenceRules(Roots(folder), "datasets"), decode=here)
    view = datasets.prepare(order, folder / "view of many", StopSignal(), lambda _: None)
    return {how: seconds_to_labels(view, folder / "home", how) for how in ("table", "scan")}


def seconds_to_labels(view: PreparedDataset, home: Path, how: str) -> float:
    """Read the labels in a separate process. Return the seconds."""
    arguments = json.dumps({"data": str(view.data), "table": how == "table"})
    command = [sys.executable, "-m", "benchmarks.labels", "--labels-of", arguments]
    done = subprocess.run(command, env=environment(home), capture_output=True, text=True, check=True)
    return float(done.stdout.splitlines()[-1])


def labels_of(data: str, table: bool) -> float:
    """Read the labels in the process that `seconds_to_labels` starts. Return the seconds."""
    from ultralytics.cfg import get_cfg
    from ultralytics.data.build import build_yolo_dataset
    from ultralytics.data.utils import check_det_dataset

    from trainer.training.speedups.labels import install

    if table:
        install()
    document = check_det_dataset(data)
    cfg = get_cfg(overrides={"imgsz": 64, "data": data})
    started = time.perf_counter()
    build_yolo_dataset(cfg, document["train"], BATCH, document, mode="train", stride=32)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="run one small round, to test the benchmark")
    parser.add_argument("--labels-of", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.labels_of:
        print(labels_of(**options.labels_of))
        return
    for figure in figures(tiny=options.tiny):
        print(figure.line(), flush=True)


if __name__ == "__main__":
    main()
