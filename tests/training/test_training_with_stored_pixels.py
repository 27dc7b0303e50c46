"""Stored pixels in a whole training: the weights are the same, and the setting reaches the training process."""

from __future__ import annotations

import time
import warnings

import psutil
import pytest
from child_run import order_for, run_child
from drawn import draw
from pixel_batches import IMGSZ, LABELED

from trainer.core.dataset import Task
from trainer.core.events import Finished
from trainer.settings import Settings
from trainer.training.wire import FAST_LOADER
from trainer.wiring.host import build_trainer


def weights(run_dir):
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        state = torch.load(run_dir / "weights/last.pt", weights_only=False)["model"].state_dict()
    return {name: value.numpy().tobytes() for name, value in state.items()}


@pytest.mark.training
@pytest.mark.long
@pytest.mark.parametrize("task", LABELED)
def test_weights_and_metrics_are_equal_with_and_without_stored_pixels(tmp_path, task):
    runs = {}
    for most_bytes in (0, 1 << 30):
        home = tmp_path / str(most_bytes)
        view = draw(tmp_path / "data", task)
        order = order_for(view, home / "run", epochs=2, imgsz=IMGSZ, args={"workers": 2 if task is Task.DETECT else 0})
        run = run_child(order, home, env={FAST_LOADER: str(most_bytes)})
        assert isinstance(run.last, Finished), run.output
        assert (view.root / "pixels").exists() is bool(most_bytes)
        rows = (home / "run/results.csv").read_text().splitlines()
        runs[most_bytes] = weights(home / "run"), [row.split(",")[2:] for row in rows]

    assert runs[0] == runs[1 << 30]


@pytest.mark.parametrize(("is_on", "most_bytes"), [(True, 2 * 10**9), (False, 0)])
def test_fast_loader_setting_reaches_training_process(tmp_path, is_on, most_bytes):
    settings = Settings(trainer_home=tmp_path, fast_loader=is_on, dataset_cache_gb=2, warm_start=True)
    before = psutil.Process().children(recursive=True)
    trainer = build_trainer(settings)
    try:
        trainer.warm()
        started = [process for process in psutil.Process().children(recursive=True) if process not in before]
        deadline = time.monotonic() + 10
        while (values := {process.environ().get(FAST_LOADER) for process in started}) == {None}:
            assert time.monotonic() < deadline  # before exec, a child still has the test's environment
        assert values == {str(most_bytes)}
    finally:
        trainer.close()
