"""The architectures in the Ultralytics package are copied to files with the size letter in the name."""

import json
import os
import re
import subprocess
import sys

from trainer.core import model_catalog
from trainer.core.dataset import Task
from trainer.core.model import Architecture
from trainer.core.stop import StopSignal


def test_architecture_copy_has_size_in_name(folder, models):
    path = folder().resolve(Architecture(stem="yolo11s"), Task.SEGMENT, StopSignal())
    assert path == models / ".architectures" / "yolo11s-seg.yaml"
    assert b"scales:" in path.read_bytes()
    assert b"Segment" in path.read_bytes()


def test_changed_architecture_copy_is_replaced(folder):
    model_folder = folder()
    path = model_folder.resolve(Architecture(stem="yolo11n"), Task.DETECT, StopSignal())
    original = path.read_bytes()
    path.write_text("activation: __import__('os').system('true')")
    assert model_folder.resolve(Architecture(stem="yolo11n"), Task.DETECT, StopSignal()) == path
    assert path.read_bytes() == original


def test_every_architecture_of_catalog_is_in_ultralytics_package(folder):
    model_folder = folder()
    for stem, by_task in model_catalog.ARCHITECTURES.items():
        for task in by_task:
            assert model_folder.resolve(Architecture(stem=stem), task, StopSignal()).stat().st_size > 100


READ_BY_ULTRALYTICS = """
import json, sys
from ultralytics.nn.tasks import yaml_model_load
print(json.dumps({path: yaml_model_load(path)["scale"] for path in json.load(sys.stdin)}))
"""


def test_ultralytics_reads_size_from_name_of_copy(folder, models, tmp_path):
    model_folder, wanted = folder(), {}
    for stem, by_task in model_catalog.ARCHITECTURES.items():
        size = re.match(r"yolov?(?:3|5|6|8|11|12|26)([nsmlx])(-|$)", stem)
        for task in by_task:
            path = model_folder.resolve(Architecture(stem=stem), task, StopSignal())
            wanted[str(path)] = size[1] if size else None
    environment = {"PATH": os.environ["PATH"], "YOLO_OFFLINE": "1", "YOLO_CONFIG_DIR": str(tmp_path)}
    command = [sys.executable, "-c", READ_BY_ULTRALYTICS]
    done = subprocess.run(
        command,
        input=json.dumps(list(wanted)),
        env=environment,
        cwd=tmp_path,
        text=True,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    read = json.loads(done.stdout.splitlines()[-1])
    assert len(read) > 100
    assert {path: scale for path, scale in wanted.items() if scale and read[path] != scale} == {}
