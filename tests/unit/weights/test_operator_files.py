"""Model files of the operator in MODELS_DIR, and rejected paths."""

import pytest

from tests.unit.weights.release import BUCKET, YOLO11N, put, weights
from trainer.core.dataset import Task
from trainer.core.errors import BadRequest, MachineFailed
from trainer.core.model import Architecture, ModelFile
from trainer.core.stop import StopSignal
from trainer.weights.model_folder import ModelFolder


def test_file_of_operator_is_found(folder, models):
    path = put(models, "team/a.pt")
    assert folder().resolve(ModelFile(name="team/a.pt"), Task.DETECT, StopSignal()) == path


@pytest.mark.parametrize(
    "content", [b"", b"not a zip", b"\x80\x02}q\x00.", weights()[:-30], b"PK\x03\x04" + b"\0" * 1000]
)
def test_file_that_is_not_a_complete_pytorch_file_is_rejected(folder, models, content):
    put(models, "a.pt", content)
    put(models, "yolo11n.pt", content)
    for model, name in ((ModelFile(name="a.pt"), "a.pt"), (YOLO11N, "yolo11n.pt")):
        with pytest.raises(BadRequest, match=f"{name}.*not a complete PyTorch file"):
            folder().resolve(model, Task.DETECT, StopSignal())


def test_error_about_missing_file_names_models_dir(folder):
    with pytest.raises(BadRequest, match="the file is not in MODELS_DIR"):
        folder().resolve(ModelFile(name="nothing.pt"), Task.DETECT, StopSignal())


def test_folder_instead_of_model_file_is_rejected(folder, models):
    (models / "dir.pt").mkdir(parents=True)
    with pytest.raises(BadRequest, match="the file is not in MODELS_DIR"):
        folder().resolve(ModelFile(name="dir.pt"), Task.DETECT, StopSignal())


@pytest.mark.parametrize("name", ["../outside.pt", "link.pt", "linked/outside.pt", "a/../../outside.pt"])
def test_path_outside_of_models_dir_is_rejected(folder, models, tmp_path, name):
    (tmp_path / "outside.pt").write_bytes(weights())
    (models / "a").mkdir(parents=True)
    (models / "link.pt").symlink_to(tmp_path / "outside.pt")
    (models / "linked").symlink_to(tmp_path, target_is_directory=True)
    with pytest.raises(BadRequest, match="is outside of MODELS_DIR"):
        folder().resolve(ModelFile(name=name), Task.DETECT, StopSignal())


def test_absolute_path_is_rejected(folder, tmp_path):
    (tmp_path / "outside.pt").write_bytes(weights())
    with pytest.raises(BadRequest, match="is outside of"):
        folder().resolve(ModelFile(name=str(tmp_path / "outside.pt")), Task.DETECT, StopSignal())


def test_model_files_on_disk_are_listed(folder, models):
    for name in ("yolo11n.pt", "team/a.pt", ".runs/b.pt", "notes.txt"):
        put(models, name)
    assert folder().on_disk() == ["team/a.pt", "yolo11n.pt"]


def test_unusable_models_dir_raises_machine_failed(models, store):
    models.write_text("a file where the folder should be")
    blocked = ModelFolder(models, store=store, artifacts_bucket=BUCKET, run_of={}.get, allow_download=True)
    with pytest.raises(MachineFailed, match=r"MODELS_DIR .* cannot be used"):
        blocked.resolve(Architecture(stem="yolo11n"), Task.DETECT, StopSignal())
