"""The training process depends on these properties of the installed Ultralytics.

If a test fails, read the source code of the new release and adapt this project.
"""

import inspect
import io
import re
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest


@pytest.fixture
def trainer(ultralytics):
    return ultralytics.engine.trainer.BaseTrainer


def source(thing):
    return inspect.getsource(thing)


def in_order(text, *parts):
    """Return whether the parts occur in `text` in the given order."""
    places = [text.index(part) for part in parts]
    return places == sorted(places)


def test_installed_version_is_pinned_version(ultralytics):
    pinned = (Path(__file__).parents[3] / "requirements.txt").read_text()

    assert f"ultralytics=={ultralytics.__version__} \\" in pinned.splitlines()


def test_epoch_callbacks_are_in_expected_order(trainer):
    loop = source(trainer._do_train)

    assert in_order(
        loop,
        'run_callbacks("on_train_start")',
        'run_callbacks("on_train_epoch_start")',
        'run_callbacks("on_train_batch_end")',
        'run_callbacks("on_train_epoch_end")',
        "self.validate()",
        "self.save_metrics(",
        "self.save_model()",
        'run_callbacks("on_fit_epoch_end")',
        "self.final_eval()",
    )


def test_final_eval_calls_epoch_callback_once_more(trainer):
    assert source(trainer.final_eval).count('run_callbacks("on_fit_epoch_end")') == 1
    assert source(trainer._do_train).count('run_callbacks("on_fit_epoch_end")') == 1


def test_first_callback_is_called_before_dataset_is_read(trainer):
    assert in_order(source(trainer.__init__), 'run_callbacks("on_pretrain_routine_start")', "self.get_dataset()")


def test_dataset_is_scanned_after_model_is_built(trainer):
    assert in_order(source(trainer._setup_train), "self.setup_model()", "self._build_train_pipeline()")


def test_stop_set_by_last_callback_of_epoch_ends_training_loop(trainer):
    loop = source(trainer._do_train)

    assert in_order(loop[loop.index('"on_fit_epoch_end"') :], "if self.stop:", "break")


def test_batch_halving_of_ultralytics_is_disabled_by_retry_count(trainer):
    loop = source(trainer._do_train)

    assert "self._oom_retries >= 3" in loop
    assert in_order(loop, "self._oom_retries = 0", 'run_callbacks("on_train_epoch_start")')
    assert "self._oom_retries = 0  # reset" in loop


def test_train_time_start_is_used_for_results_and_time_budget(trainer):
    assert "self.train_time_start" in source(trainer.save_metrics)
    loop = source(trainer._do_train)
    assert in_order(loop, "self.train_time_start = time.time()", 'run_callbacks("on_train_start")')
    assert "(t - self.train_time_start) / (epoch - self.start_epoch + 1)" in loop


def test_start_epoch_is_used_before_first_callback_of_epoch(trainer):
    loop = source(trainer._do_train)

    assert in_order(loop, "epoch = self.start_epoch", 'run_callbacks("on_train_epoch_start")')


def test_best_pt_is_written_if_fitness_equals_best_fitness(trainer):
    assert "if self.best_fitness == self.fitness:" in source(trainer.save_model)
    assert "self.last.write_bytes(serialized_ckpt)" in source(trainer.save_model)


def test_resumed_training_accepts_changed_batch_and_device_but_not_epochs(trainer):
    allowed = re.search(r"allowed = \{.*?\n(.*?)\}", source(trainer.check_resume), re.DOTALL)[1]

    for name in ("batch", "device", "workers", "save_dir"):
        assert f'"{name}"' in allowed
    assert '"epochs"' not in allowed


def test_strip_optimizer_resets_epoch_and_removes_optimizer(ultralytics):
    """A training cannot resume from a checkpoint without these values."""
    from ultralytics.utils import torch_utils

    stripping = source(torch_utils.strip_optimizer)
    assert 'x["epoch"] = -1' in stripping
    assert '"optimizer"' in stripping


def test_git_data_in_checkpoints_can_be_cleared(ultralytics, trainer, tmp_path):
    from ultralytics.utils.git import GitRepo

    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "HEAD").write_text("ref: refs/heads/x\n")
    (tmp_path / ".git" / "config").write_text('[remote "origin"]\n\turl = https://token@example.org\n')
    git = GitRepo(tmp_path)
    assert git.origin
    assert git.branch == "x"

    git.__dict__.clear()
    git.root = git.gitdir = git.refdir = None
    assert (git.branch, git.commit, git.message, git.origin) == (None, None, None, None)
    assert ultralytics.utils.GIT is ultralytics.engine.trainer.GIT
    assert set(re.findall(r"GIT\.(\w+)", source(trainer.save_model))) == {
        "root",
        "branch",
        "commit",
        "message",
        "origin",
    }


def test_integrations_are_added_by_replaceable_function(ultralytics):
    from ultralytics.engine import exporter, predictor, trainer, validator

    for module in (exporter, predictor, trainer, validator):
        calls = [line for line in source(module).splitlines() if "add_integration_callbacks(" in line]
        assert calls
        assert all("callbacks.add_integration_callbacks(self)" in line for line in calls)
        assert "import add_integration_callbacks" not in source(module)


def test_label_caches_are_read_by_replaceable_function(ultralytics):
    from ultralytics.data import dataset

    assert "load_dataset_cache_file(cache_path)" in source(dataset)
    for method in (dataset.YOLODataset._load_or_scan_cache, dataset.ClassificationDataset.verify_images):
        assert "except Exception" in source(method)  # if the cache cannot be loaded, Ultralytics scans the labels


def test_torch_loads_checkpoint_with_added_members(ultralytics, tmp_path):
    import torch

    from trainer.training.yolo.checkpoint_file import Progress, commit, prepare

    (tmp_path / "results.csv").write_text("epoch\n")
    buffer = io.BytesIO()
    torch.save({"weights": torch.arange(1000)}, buffer)
    (tmp_path / "last.pt").write_bytes(buffer.getvalue())
    prepared = prepare(tmp_path / "last.pt", tmp_path, Progress(epoch=1), {"results.csv": tmp_path / "results.csv"})
    commit(prepared, Progress(epoch=1))
    kept = tmp_path / "checkpoints" / "epoch-00001.pt"

    assert torch.equal(torch.load(kept, weights_only=True)["weights"], torch.arange(1000))
    assert zipfile.ZipFile(kept).testzip() is None


def test_batches_of_one_loader_epoch_can_be_skipped(ultralytics):
    import torch
    from ultralytics.data.build import InfiniteDataLoader

    from trainer.training.yolo.callbacks import _skip_once

    loader = InfiniteDataLoader(torch.arange(10), batch_size=2)
    _skip_once(loader, 3)

    assert len(loader) == 5
    assert [len(list(loader)) for _ in range(3)] == [2, 5, 5]
    assert type(loader) is InfiniteDataLoader


def test_metrics_of_each_task_have_the_names_used_by_the_report(ultralytics):
    from ultralytics.utils import metrics

    for kind, name in {
        "DetMetrics": "box",
        "OBBMetrics": "box",
        "SegmentMetrics": "seg",
        "PoseMetrics": "pose",
    }.items():
        assert isinstance(getattr(getattr(metrics, kind)({0: "a"}), name), metrics.Metric)
    curves = re.findall(r'self\.px, self\.(\w+), "(\w+)", "(\w+)"', source(metrics.Metric.curves_results.fget))
    assert [y for _, _, y in curves] == ["Precision", "F1", "Precision", "Recall"]
    assert metrics.ClassifyMetrics().keys == ["metrics/accuracy_top1", "metrics/accuracy_top5"]


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("CUDA out of memory. Tried to allocate 2.00 GiB", True),
        ("CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate", True),
        ("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory", True),
        ("The size of tensor a (3) must match the size of tensor b (4)", False),
    ],
)
def test_memory_errors_are_recognized_by_message(ultralytics, message, expected):
    from trainer.training.yolo.train import is_out_of_memory

    assert is_out_of_memory(RuntimeError(message)) is expected


def test_trainer_has_attributes_used_by_callbacks(ultralytics, trainer):
    import torch

    has = SimpleNamespace(device=torch.device("cpu"))
    assert trainer._get_memory(has) == 0
    loaded = set(re.findall(r"self\.(\w+)", source(trainer)))
    assert {
        "nan_recovery_attempts",
        "tloss",
        "lr",
        "fitness",
        "best_fitness",
        "epochs",
        "batch_size",
        "csv",
        "wdir",
    } <= loaded
