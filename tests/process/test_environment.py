from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

import pytest

from trainer.training.supervisor import environment as child_environment

SECRETS = {
    "SUPABASE_URL": "https://project.example",
    "SUPABASE_SERVICE_ROLE_KEY": "planted-service-key",
    "HF_TOKEN": "planted-hf",
    "WANDB_API_KEY": "planted-wandb",
    "ULTRALYTICS_API_KEY": "planted-ultralytics",
    "AWS_SECRET_ACCESS_KEY": "planted-aws",
    "DATABASE_URL": "postgres://user:planted-password@host/db",
    "HTTPS_PROXY": "http://user:planted-proxy@host",
    "LC_SECRET_TOKEN": "",
    "MLFLOW_TRACKING_URI": "http://planted-mlflow",
    "PYTEST_CURRENT_TEST": "planted-test",
    "RANK": "3",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "3",
    "MASTER_ADDR": "planted-address",
    "PIP_INDEX_URL": "http://planted-index",
    "PYTHONSTARTUP": "/planted.py",
}
HARMLESS = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "LC_ALL": "C.UTF-8", "TZ": "UTC", "NCCL_P2P_DISABLE": "1"}


@pytest.fixture
def report(program):
    return (
        program("reports_its_environment", environment=SECRETS | HARMLESS).train(devices=(0, 2)).report["environment"]
    )


def test_training_process_gets_no_secret(report):
    assert "planted" not in str(report["environment"])
    assert "planted" not in str(report["argv"])
    assert "planted" not in str(report["order"])
    assert not [name for name in report["environment"] if re.search(r"KEY|TOKEN|SECRET|SUPABASE|PROXY|PYTEST", name)]
    assert not {"RANK", "WORLD_SIZE", "LOCAL_RANK"} & set(report["environment"])


def test_training_process_gets_allowed_variables(report):
    environment = report["environment"]

    assert HARMLESS.items() <= environment.items()
    assert environment["CUDA_VISIBLE_DEVICES"] == "0,2"
    assert environment["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    assert environment["YOLO_OFFLINE"] == "1"
    assert environment["YOLO_AUTOINSTALL"] == "false"
    assert environment["ULTRALYTICS_SAFE_LOAD"] == "1"


def test_variables_that_bind_threads_are_removed(program):
    """The sandbox refuses to bind other threads, and libgomp then ends the process."""
    training = program("reports_its_environment", environment={"GOMP_CPU_AFFINITY": "0-1", "KMP_AFFINITY": "compact"})

    assert not [name for name in training.train().report["environment"]["environment"] if "AFFINITY" in name]


def test_run_without_gpus_sees_no_gpu(program):
    report = (
        program("reports_its_environment", environment={"CUDA_VISIBLE_DEVICES": "0,1"})
        .train(devices=())
        .report["environment"]
    )

    assert report["environment"]["CUDA_VISIBLE_DEVICES"] == ""


def test_libraries_write_to_private_folder(report):
    folder = report["environment"]["HOME"]

    assert report["cwd"] == f"{folder}/tmp"  # an empty folder, so that no module is imported by accident
    for name in ("TMPDIR", "YOLO_CONFIG_DIR", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "MPLCONFIGDIR", "CUDA_CACHE_PATH"):
        assert report["environment"][name].startswith(folder)


def test_training_process_has_its_own_session(report):
    assert report["session"] == report["pid"]


def test_training_process_inherits_only_its_four_descriptors(report):
    assert {int(fd) for fd in report["fds"]} - {0, 1, 2} == {report["events"]}


def test_integrations_are_disabled_and_weights_folder_is_set(report, tmp_path):
    settings = report["settings"]

    assert not any(value for value in settings.values() if isinstance(value, bool))
    assert settings["api_key"] == ""
    assert settings["weights_dir"] == str(tmp_path / "models")


def test_settings_contain_every_key_of_installed_ultralytics():
    """Ultralytics fills a missing key with its default, which enables the integration."""
    source = (Path(sys.prefix) / "lib/python3.11/site-packages/ultralytics/utils/__init__.py").read_text()
    version = re.search(r'class SettingsManager.*?version="([\d.]+)"', source, re.DOTALL)[1]
    defaults = re.search(r"self\.defaults = \{(.*?)\n        \}", source, re.DOTALL)[1]
    keys = set(re.findall(r'^\s+"(\w+)":', defaults, re.MULTILINE))

    ours = child_environment._SETTINGS

    assert keys == set(ours) | {"datasets_dir", "weights_dir", "runs_dir"}
    assert ours["settings_version"] == version


def test_private_folder_contains_truetype_fonts(tmp_path):
    folder = child_environment.private_folder(tmp_path / "home", tmp_path)

    for name in ("Arial.ttf", "Arial.Unicode.ttf"):
        assert (folder / "Ultralytics" / name).read_bytes().startswith(b"\x00\x01\x00\x00")


def test_temporary_paths_are_short_enough_for_sockets(tmp_path):
    deep = tmp_path / ("x" * 100)

    folder = child_environment.private_folder(deep, tmp_path)

    assert len(str(folder / "tmp")) <= 70
    assert folder.name.startswith("yolo-trainer-child-")  # `tidy` finds old folders by this name
    shutil.rmtree(folder)
