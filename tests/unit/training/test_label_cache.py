"""Code in a label cache does not run when the cache is read."""

import pickle

import numpy as np
import pytest


def test_label_cache_of_ultralytics_is_read(ultralytics, tmp_path):
    from ultralytics.data.utils import save_dataset_cache_file

    from trainer.training.yolo.patches import load_label_cache

    labels = [
        {
            "im_file": str(tmp_path / "a.png"),
            "shape": (64, 64),
            "cls": np.zeros((1, 1), np.float32),
            "bboxes": np.ones((1, 4), np.float32),
            "segments": [np.ones((4, 2), np.float32)],
            "keypoints": np.ones((1, 4, 3), np.float32),
            "normalized": True,
        },
    ]
    path = tmp_path / "train.cache"
    save_dataset_cache_file("", path, {"labels": labels, "hash": "x", "results": (1, 0, 0, 0, 1), "msgs": []}, "1.0")

    read = load_label_cache(path)
    assert read["hash"] == "x"
    assert np.array_equal(read["labels"][0]["bboxes"], labels[0]["bboxes"])


def test_code_in_label_cache_does_not_run(ultralytics, tmp_path):
    from trainer.training.yolo.patches import load_label_cache

    class Hostile:
        def __reduce__(self):
            return exec, (f"open({str(tmp_path / 'touched')!r}, 'w')",)

    path = tmp_path / "train.cache"
    with path.open("wb") as file:
        np.save(file, np.array({"labels": Hostile()}, dtype=object), allow_pickle=True)

    with pytest.raises(pickle.UnpicklingError, match="must not use"):
        load_label_cache(path)
    assert not (tmp_path / "touched").exists()
