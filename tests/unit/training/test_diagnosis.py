"""Diagnosis of a failed training from the messages of the installed libraries."""

from __future__ import annotations

import dataclasses
import re
import sys
from pathlib import Path

import pytest

from tests.unit.training.failure_messages import EXCEPTIONS
from trainer.core.errors import HostSuspected, MachineFailed
from trainer.core.events import Crashed, Phase
from trainer.training.supervisor.diagnosis import Evidence, diagnose, stuck
from trainer.training.supervisor.failure_patterns import CAUSES

PACKAGES = Path(sys.prefix) / "lib" / "python3.11" / "site-packages"


def evidence(**facts):
    return Evidence(
        **{"exit_code": 1, "phase": Phase.TRAINING, "epoch": 3, "batch": 16, "imgsz": 640, "free_disk": 3 * 2**30}
        | facts
    )


def crash(error, message, traceback=""):
    return Crashed(error=error, message=message, traceback=traceback, phase=Phase.VALIDATING)


@pytest.mark.parametrize(("error", "message", "kind", "sentence"), EXCEPTIONS.values(), ids=EXCEPTIONS)
def test_diagnosis_of_exception_is_one_short_line(error, message, kind, sentence):
    diagnosis = diagnose(evidence(crashed=crash(error, message)))

    assert type(diagnosis) is kind
    assert re.search(sentence, str(diagnosis))
    assert "\n" not in str(diagnosis)
    assert len(str(diagnosis)) < 600
    assert "{" not in str(diagnosis)


@pytest.mark.parametrize("cause", CAUSES, ids=lambda cause: cause.pattern[:30])
def test_every_pattern_has_example(cause):
    assert any(
        re.search(cause.pattern, f"{error}: {message}", re.IGNORECASE) for error, message, _, _ in EXCEPTIONS.values()
    )


def test_diagnosis_names_phase_and_epoch():
    assert "while validating (epoch 3)" in str(diagnose(evidence(crashed=crash("MemoryError", ""))))
    assert "while training:" in str(diagnose(evidence(exit_code=-9, oom_kills=1, epoch=0)))


@pytest.mark.parametrize(
    ("batch", "hint"),
    [
        (1, "smaller image size than 640"),
        (0.7, "as a number of images"),
        (-1, "a smaller batch"),
        (8, "a smaller batch"),
    ],
)
def test_gpu_memory_hint_depends_on_batch(batch, hint):
    diagnosis = diagnose(evidence(batch=batch, crashed=crash("OutOfMemoryError", "CUDA out of memory.")))

    assert hint in str(diagnosis)


def test_gpu_memory_hint_uses_batch_size_after_halving():
    message = "CUDA out of memory. Tried to allocate 2.50 GiB. (batch 1, image size 640, batch halved 3 times)"

    diagnosis = diagnose(evidence(crashed=crash("OutOfMemoryError", message)))

    assert "at batch 1, image size 640: use a smaller image size than 640" in str(diagnosis)


def test_cause_is_found_in_chained_exception():
    traceback = (
        'Traceback (most recent call last):\n  File "x.py", line 1, in save\n    raise MemoryError  # not this\n'
        "OSError: [Errno 28] No space left on device\n\nDuring handling of the above exception, another exception occurred:\n"
    )

    assert "disk was full" in str(diagnose(evidence(crashed=crash("ValueError", "cannot save", traceback))))


def test_source_lines_of_traceback_are_ignored():
    traceback = 'Traceback (most recent call last):\n  File "x.py", line 1\n    except MemoryError: # CUDA error\n'

    assert "KeyError: 'x'" in str(diagnose(evidence(crashed=crash("KeyError", "'x'", traceback))))


OUTPUTS = {
    "abort after a printed error": (
        -6,
        [
            "  1/3 ━━━",
            "terminate called after throwing an instance of 'c10::AcceleratorError'",
            "  what():  CUDA error: an illegal memory access was encountered",
        ],
        "GPU or its driver.*illegal memory access",
    ),
    "killed DataLoader worker": (1, ["RuntimeError: DataLoader worker (pid 1) is killed by signal: Killed."], "memory"),
    "bad_alloc": (-6, ["terminate called after throwing an instance of 'std::bad_alloc'"], "host ran out of memory"),
    "error printed by a process of torchrun": (
        1,
        ["torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 MiB."],
        "GPU ran out of memory",
    ),
    "segmentation fault": (
        -11,
        ["Fatal Python error: Segmentation fault", "", "Thread 0x1 (most recent call first):", '  File "x.py", line 1'],
        "SIGSEGV.*Fatal Python error",
    ),
    "bus error": (-7, ["  2/3 ━━━"], "/dev/shm"),
    "SIGKILL": (-9, ["  2/3 ━━━"], r"killed while training \(epoch 3\) \(SIGKILL\).*memory"),
    "SIGKILL as exit code of a shell": (137, [], "SIGKILL"),
    "other exit code": (3, ["done, I think", " "], "exit code 3.*done, I think"),
    "no output": (0, [], "exit code 0.*: none"),
    "SIGTERM after a harmless warning": (
        -15,
        ["WARNING ⚠️ 1.jpg: ignoring corrupt image/label: [Errno 30] Read-only file system", "  2/3 ━━━"],
        "SIGTERM",
    ),
    "unknown signal": (-50, [], "signal 50|SIGRT"),
}


@pytest.mark.parametrize(("code", "output", "sentence"), OUTPUTS.values(), ids=OUTPUTS)
def test_exit_without_crash_event_is_diagnosed_from_exit_code_and_output(code, output, sentence):
    diagnosis = diagnose(evidence(exit_code=code, output=output))

    assert re.search(sentence, str(diagnosis))
    assert "\n" not in str(diagnosis)


def test_kernel_oom_kill_count_overrides_output():
    facts = evidence(exit_code=-9, output=["ERROR something else"], oom_kills=1)

    assert "out-of-memory killer" in str(diagnose(facts))
    assert "most likely" in str(diagnose(dataclasses.replace(facts, oom_kills=0)))


def test_unexplained_crash_becomes_machine_failed():
    assert isinstance(diagnose(evidence(exit_code=-11)), MachineFailed)


def starting(**facts):
    return evidence(phase=Phase.STARTING, epoch=0, **facts)


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"exit_code": 1, "output": ["ImportError: libcudart.so.13: cannot open shared object file"]}, "libcudart"),
        ({"exit_code": 127, "output": ["cannot start /venv/bin/python: No such file or directory"]}, "cannot start"),
        ({"exit_code": 2, "output": ["WireError: a training order of another version"]}, "another version"),
        ({"crashed": Crashed(error="ImportError", message="libcudart.so.13", traceback="", phase=Phase.STARTING,
                             is_installation=True)}, "ImportError: libcudart"),
    ],
)  # fmt: skip
def test_exit_before_training_order_is_read_becomes_host_suspected(facts, words):
    diagnosis = diagnose(starting(**facts))

    assert type(diagnosis) is HostSuspected
    assert re.search(f"while starting.*{words}.*install requirements.txt again", str(diagnosis))


@pytest.mark.parametrize(
    "facts",
    [
        {"phase": Phase.STARTING, "exit_code": -9},  # killed by the kernel or by a user
        {"phase": Phase.STARTING, "crashed": crash("KeyError", "x")},  # the process has read its training order
        {"phase": Phase.LOADING, "exit_code": 1},
        {"phase": Phase.LOADING, "crashed": dataclasses.replace(crash("KeyError", "x"), is_installation=True)},
    ],
)
def test_signal_or_exit_after_training_order_is_read_does_not_become_host_suspected(facts):
    assert not isinstance(diagnose(evidence(**facts)), HostSuspected)


def test_diagnosis_of_stuck_training_names_phase_and_setting():
    assert "1800 s while validating (epoch 7)" in str(stuck(Phase.VALIDATING, 7, 1800.0))
    assert "STALL_SECONDS" in str(stuck(Phase.VALIDATING, 7, 1800.0))
    assert "not ready after 300 s" in str(stuck(Phase.STARTING, 0, 300.0))
    assert isinstance(stuck(Phase.STARTING, 0, 300.0), HostSuspected)
    assert not isinstance(stuck(Phase.TRAINING, 1, 300.0), HostSuspected)


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("ultralytics/engine/trainer.py", "Training failed: NaN persisted for"),
        ("ultralytics/engine/trainer.py", "no valid last.pt is available for recovery"),
        ("ultralytics/data/dataset.py", "No labels found in"),
        ("ultralytics/data/dataset.py", "No valid images found in"),
        ("ultralytics/data/utils.py", "exceeds dataset class count"),
        ("ultralytics/data/base.py", "Error loading data from"),
        ("ultralytics/data/base.py", "Image Not Found"),
        ("ultralytics/utils/torch_utils.py", "Invalid CUDA 'device="),
        ("torch/utils/data/dataloader.py", "exited unexpectedly"),
        ("torch/utils/data/_utils/signal_handling.py", "_error_if_any_worker_fails"),
    ],
)
def test_installed_libraries_contain_expected_messages(path, words):
    assert words in (PACKAGES / path).read_text()
