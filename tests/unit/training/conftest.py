import warnings

import pytest


@pytest.fixture(scope="module")
def ultralytics(tmp_path_factory):
    """Import Ultralytics in the same way as the training process."""
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, value in {
            "YOLO_OFFLINE": "1",
            "YOLO_AUTOINSTALL": "false",
            "ULTRALYTICS_SAFE_LOAD": "1",
            "YOLO_CONFIG_DIR": str(tmp_path_factory.mktemp("config")),
        }.items():
            patch.setenv(name, value)
        import ultralytics
        import ultralytics.engine.trainer
        import ultralytics.engine.validator

        yield ultralytics
