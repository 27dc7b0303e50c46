"""Fixtures of the tests that change Ultralytics' classes in this process."""

import warnings

import pytest


@pytest.fixture(scope="module")
def ultralytics_config(tmp_path_factory):
    """Import Ultralytics with a private configuration folder, and hide the warnings of the import."""
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch.setenv("YOLO_CONFIG_DIR", str(tmp_path_factory.mktemp("config")))
        import ultralytics.data.base  # noqa: F401 - the first import prints a warning

        yield


@pytest.fixture
def base(ultralytics_config, monkeypatch):
    """The module `ultralytics.data.base`, restored after the test."""
    import ultralytics.data.base as module

    for method in ("load_image", "__init__"):
        monkeypatch.setattr(module.BaseDataset, method, getattr(module.BaseDataset, method))
    return module
