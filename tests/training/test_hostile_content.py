"""Datasets and weights that try to run code, install packages or report data about the host have no effect."""

import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
from child_run import order_for, run_child
from drawn import draw

from trainer.core.dataset import Task
from trainer.core.events import Crashed, EpochFinished, Finished, Phase, Warned

pytestmark = pytest.mark.training

SECRET = "ghp_thisIsASecret"


class Hostile:
    """An object that writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return exec, (f"open({self.path!r}, 'w').write('executed')",)


def pt_file(path, content):
    """Write the pickle of `content` to a file in the format of torch.save, and return its path."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(content, protocol=2))
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/byteorder", "little")
    return path


@pytest.fixture(scope="module")
def detect(tmp_path_factory):
    return draw(tmp_path_factory.mktemp("detect"), Task.DETECT, train=8, val=4)


@pytest.fixture(scope="module")
def attacked(tmp_path_factory):
    """A training in a git repository with a token in its URL, on a dataset with a hostile cache and a broken image."""
    home = tmp_path_factory.mktemp("attacked")
    repository = home / "repository"
    (repository / ".git").mkdir(parents=True)
    (repository / ".git" / "HEAD").write_text("ref: refs/heads/secret-branch\n")
    (repository / ".git" / "config").write_text(f'[remote "origin"]\n\turl = https://me:{SECRET}@example.org/x.git\n')
    dataset = draw(home / "data", Task.DETECT, train=8, val=4)
    with (home / "data" / "labels" / "train.cache").open("wb") as file:
        np.save(file, np.array(Hostile(home / "executed"), dtype=object), allow_pickle=True)
    Path(home / "data" / "images" / "train" / "000.png").write_text("<html>404</html>")
    order = order_for(dataset, home / "run")
    env = {"GIT_ROOT": str(repository)}
    return run_child(order, home, program="foreign_repository.py", env=env), home


def test_training_on_hostile_content_completes(attacked):
    run, _ = attacked

    assert isinstance(run.last, Finished), run.output
    assert len(run.of(EpochFinished)) == 1


def test_label_cache_of_dataset_runs_no_code(attacked):
    assert not (attacked[1] / "executed").exists()


def test_invalid_image_is_left_out_and_installs_nothing(attacked):
    run, _ = attacked

    (warning,) = run.of(Warned)
    assert warning.code == "images_left_out"
    assert warning.message.startswith("1 of 8 train images")
    assert "pi-heif" in run.output
    assert not [line for line in run.output.splitlines() if line.startswith("AUDIT") and "install" in line]


def test_telemetry_is_not_called(attacked):
    assert "TELEMETRY" not in attacked[0].output


def test_published_files_contain_no_git_data(attacked):
    run, home = attacked
    files = [run.folder.best, run.folder.last, run.newest]

    for file in files:
        with zipfile.ZipFile(file) as archive:
            content = archive.read(next(name for name in archive.namelist() if name.endswith("/data.pkl")))
        assert b"train_args" in content
        for secret in (SECRET, "secret-branch", str(home / "repository")):
            assert secret.encode() not in content


def test_weights_with_code_are_refused(detect, tmp_path):
    weights = pt_file(tmp_path / "hostile.pt", {"model": Hostile(tmp_path / "executed"), "train_args": {}})
    run = run_child(order_for(detect, tmp_path / "run", model=weights), tmp_path)

    assert isinstance(run.last, Crashed)
    assert run.last.phase is Phase.LOADING
    assert not (tmp_path / "executed").exists()


def test_weights_of_unknown_package_install_nothing(detect, tmp_path):
    """Ultralytics would install the package that the file names."""
    (tmp_path / "repository" / ".git").mkdir(parents=True)
    (tmp_path / "repository" / ".git" / "HEAD").write_text("ref: refs/heads/main\n")
    (tmp_path / "repository" / ".git" / "config").write_text('[remote "origin"]\n\turl = https://example.org/x.git\n')
    weights = tmp_path / "hostile.pt"
    with zipfile.ZipFile(weights, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02cpackage_of_an_attacker\nModel\n)\x81.")
        archive.writestr("archive/version", "3\n")
    order, env = order_for(detect, tmp_path / "run", model=weights), {"GIT_ROOT": str(tmp_path / "repository")}
    run = run_child(order, tmp_path, program="foreign_repository.py", env=env)

    assert isinstance(run.last, Crashed)
    assert "outside the supported" in run.last.message
    assert not [line for line in run.output.splitlines() if line.startswith("AUDIT") and "install" in line]


@pytest.mark.long
def test_checkpoint_with_code_is_refused(detect, tmp_path):
    checkpoint = pt_file(tmp_path / "hostile.pt", {"ema": Hostile(tmp_path / "executed"), "epoch": 1, "train_args": {}})
    run = run_child(order_for(detect, tmp_path / "run", resume=checkpoint), tmp_path)

    assert "checkpoint_broken" in [warning.code for warning in run.of(Warned)]  # the checkpoint is ignored
    assert not (tmp_path / "executed").exists()


@pytest.mark.long
def test_best_weights_with_code_in_checkpoint_are_refused(attacked, detect, tmp_path):
    checkpoint = tmp_path / "checkpoint.pt"
    checkpoint.write_bytes(attacked[0].newest.read_bytes())
    hostile = pt_file(tmp_path / "best.pt", {"model": Hostile(tmp_path / "executed"), "train_args": {}})
    with zipfile.ZipFile(checkpoint, "a") as archive:
        archive.write(hostile, archive.namelist()[0].partition("/")[0] + "/run/best.pt")
    run = run_child(order_for(detect, tmp_path / "run", resume=checkpoint), tmp_path)

    assert isinstance(run.last, Crashed)
    assert not (tmp_path / "executed").exists()


def test_architecture_with_code_is_not_executed(detect, tmp_path):
    packaged = Path(np.__file__).parents[1] / "ultralytics" / "cfg" / "models" / "11" / "yolo11.yaml"
    hostile = tmp_path / "custom-yolo11n.yaml"
    hostile.write_text(packaged.read_text() + f"\nactivation: open({str(tmp_path / 'touched')!r}, 'w').write('x')\n")
    run = run_child(order_for(detect, tmp_path / "run", model=hostile), tmp_path)

    assert run.events
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize("variable", ["YOLO_AUTOINSTALL", "ULTRALYTICS_SAFE_LOAD"])
def test_process_with_unsafe_environment_does_not_train(detect, tmp_path, variable):
    unsafe = {"YOLO_AUTOINSTALL": "true", "ULTRALYTICS_SAFE_LOAD": "0"}[variable]
    run = run_child(order_for(detect, tmp_path / "run"), tmp_path, env={variable: unsafe})

    assert isinstance(run.last, Crashed)
    assert run.last.error == "NotIsolated"
    assert variable in run.last.message


@pytest.mark.long
def test_model_for_other_task_is_refused(detect, tmp_path):
    run = run_child(order_for(detect, tmp_path / "run", model=Path("yolo11n-seg.yaml")), tmp_path)

    assert isinstance(run.last, Crashed)
    assert run.last.error == "BadRequest"
    assert "segment" in run.last.message
    assert "detect" in run.last.message
