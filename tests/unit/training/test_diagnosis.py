"""Messages of the installed libraries, and the sentence that each one becomes."""

from __future__ import annotations

import dataclasses
import re
import sys
from pathlib import Path

import pytest

from trainer.core.errors import HostFailed, MachineFailed, RunFailed
from trainer.core.events import Crashed, Phase
from trainer.training.supervisor.diagnosis import Evidence, diagnose, stuck
from trainer.training.supervisor.failure_patterns import CAUSES

PACKAGES = Path(sys.prefix) / "lib" / "python3.11" / "site-packages"


def case(error, message, kind, sentence):
    return error, message, kind, sentence


EXCEPTIONS = {
    "cuda out of memory": case(
        "OutOfMemoryError",
        "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 23.68 GiB of which 1.94 GiB is "
        "free. Including non-PyTorch memory, this process has 21.72 GiB memory in use.",
        RunFailed,
        "GPU ran out of memory.*batch 16, image size 640.*smaller batch",
    ),
    "cublas out of memory": case(
        "RuntimeError",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        RunFailed,
        "GPU ran out of memory",
    ),
    "cpu out of memory": case(
        "RuntimeError",
        "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to "
        "allocate 400000000000000 bytes. Error code 12 (Cannot allocate memory)",
        MachineFailed,
        "host ran out of memory.*fewer workers",
    ),
    "python out of memory": case("MemoryError", "", MachineFailed, "host ran out of memory"),
    "numpy out of memory": case(
        "_ArrayMemoryError",
        "Unable to allocate 36.4 TiB for an array with shape (9999999999999,)",
        MachineFailed,
        "host ran out of memory",
    ),
    "loader killed": case(
        "RuntimeError",
        "DataLoader worker (pid 4711) is killed by signal: Killed. ",
        MachineFailed,
        "host ran out of memory",
    ),
    "loader gone": case(
        "RuntimeError",
        "DataLoader worker (pid(s) 28712) exited unexpectedly",
        MachineFailed,
        "host ran out of memory",
    ),
    "loader bus error": case(
        "RuntimeError",
        "DataLoader worker (pid 22) is killed by signal: Bus error. It is possible that dataloader's workers are out "
        "of shared memory. Please try to raise your shared memory limit.",
        MachineFailed,
        "/dev/shm was full.*--shm-size",
    ),
    "shm": case(
        "RuntimeError",
        "unable to mmap 78643200 bytes from file </torch_4242_17>: Cannot allocate memory (12)",
        MachineFailed,
        "host ran out of memory",
    ),
    "shm allocate": case(
        "RuntimeError",
        "unable to allocate shared memory(shm) for file </torch_42_1_0>: Resource temporarily unavailable (11)",
        MachineFailed,
        "/dev/shm",
    ),
    "shm open": case(
        "RuntimeError",
        "unable to open shared memory object </torch_31_9> in read-write mode: Too many open files (24)",
        MachineFailed,
        "/dev/shm|too many files",
    ),
    "descriptors": case(
        "RuntimeError",
        "received 0 items of ancdata",
        MachineFailed,
        "too many files open.*LimitNOFILE",
    ),
    "threads": case("RuntimeError", "can't start new thread", MachineFailed, "another thread.*TasksMax"),
    "disk full": case(
        "OSError",
        "[Errno 28] No space left on device: '/runs/train_1/weights/last.pt'",
        MachineFailed,
        r"disk was full.*3\.0 GiB are free",
    ),
    "quota": case("OSError", "[Errno 122] Disk quota exceeded", MachineFailed, "disk was full"),
    "torch.save on a full disk": case(
        "RuntimeError",
        "[enforce fail at inline_container.cc:671] . unexpected pos 704 vs 598",
        MachineFailed,
        "disk was full",
    ),
    "read-only": case(
        "OSError",
        "[Errno 30] Read-only file system: '/runs/train_1/results.csv'",
        MachineFailed,
        "mount and the permissions",
    ),
    "permission": case(
        "PermissionError", "[Errno 13] Permission denied: '/runs/x'", MachineFailed, "mount and the permissions"
    ),
    "stale mount": case("OSError", "[Errno 116] Stale file handle: '/data/1.jpg'", HostFailed, "network mount failed"),
    "nan": case(
        "RuntimeError",
        "Training failed: NaN persisted for 4 epochs",
        RunFailed,
        "diverged.*learning rate",
    ),
    "nan without checkpoint": case(
        "RuntimeError",
        "Loss NaN/Inf detected but no valid last.pt is available for recovery",
        RunFailed,
        "diverged",
    ),
    "launch failure": case(
        "AcceleratorError",
        "CUDA error: unspecified launch failure\nCUDA kernel errors might be asynchronously reported at some other API "
        "call, so the stacktrace below might be incorrect.\nFor debugging consider passing CUDA_LAUNCH_BLOCKING=1",
        MachineFailed,
        "GPU or its driver failed.*unspecified launch failure",
    ),
    "device lost": case(
        "RuntimeError",
        "CUDA error: no CUDA-capable device is detected",
        HostFailed,
        "GPU or its driver",
    ),
    "no driver": case(
        "RuntimeError",
        "Found no NVIDIA driver on your system. Please check that you have an NVIDIA GPU and installed a driver from "
        "http://www.nvidia.com/Download/index.aspx",
        HostFailed,
        "GPU or its driver",
    ),
    "device taken": case(
        "AcceleratorError",
        "CUDA error: CUDA-capable device(s) is/are busy or unavailable",
        HostFailed,
        "GPU or its driver",
    ),
    "broken memory": case(
        "AcceleratorError",
        "CUDA error: uncorrectable ECC error encountered",
        HostFailed,
        "GPU or its driver",
    ),
    "illegal access": case(
        "AcceleratorError",
        "CUDA error: an illegal memory access was encountered",
        MachineFailed,
        "GPU or its driver",
    ),
    "device index": case(
        "ValueError",
        "Invalid CUDA 'device=0' requested. Use 'device=cpu' or pass valid CUDA device(s) if available\n\n"
        "torch.cuda.is_available(): False",
        HostFailed,
        "GPU or its driver",
    ),
    "device assert": case(
        "AcceleratorError",
        "CUDA error: device-side assert triggered\nCUDA kernel errors might be asynchronously",
        RunFailed,
        "class index",
    ),
    "old driver": case(
        "RuntimeError",
        "The NVIDIA driver on your system is too old (found version 11040).",
        HostFailed,
        "torch does not support",
    ),
    "new gpu": case(
        "AcceleratorError",
        "CUDA error: no kernel image is available for execution on the device",
        HostFailed,
        "torch does not support",
    ),
    "nccl": case(
        "DistBackendError",
        "NCCL error in: /pytorch/torch/csrc/distributed/c10d/NCCLUtils.cpp:94, unhandled cuda error",
        MachineFailed,
        "lost the connection.*one GPU",
    ),
    "image gone": case(
        "FileNotFoundError",
        "Caught FileNotFoundError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n"
        '  File "torch/utils/data/_utils/worker.py", line 349, in _worker_loop\n    raise MemoryError  # never mind\n'
        "FileNotFoundError: Image Not Found /data/images/7.jpg\n",
        MachineFailed,
        r"is missing.*Image Not Found /data/images/7\.jpg",
    ),
    "dataset gone": case(
        "RuntimeError",
        "Dataset '/runs/view/data.yaml' error ❌ '/runs/view/data.yaml' does not exist",
        MachineFailed,
        "is missing",
    ),
    "class range": case(
        "RuntimeError",
        "No valid images found in /runs/view/labels/train.cache.\n  /runs/view/images/1.jpg: ignoring corrupt "
        "image/label: Label class 7 exceeds dataset class count 2. Possible class labels are 0-1\nSee https://docs",
        RunFailed,
        "class that the dataset does not have.*Label class 7",
    ),
    "names": case(
        "RuntimeError",
        "2-class dataset requires class indices 0-1, but you have invalid class indices 1-2",
        RunFailed,
        "0-based",
    ),
    "no labels": case(
        "ValueError",
        "train: No labels found in /runs/view/labels/train.cache. See https://docs.ultralytics.com",
        RunFailed,
        "No usable labels",
    ),
    "no images": case(
        "FileNotFoundError",
        "train: Error loading data from /runs/view/images/train\nSee https://docs.ultralytics.com",
        RunFailed,
        "No usable images",
    ),
    "wrong task": case(
        "ValueError",
        "Segment dataset requires equal numbers of boxes and segments, but got len(segments) = 0",
        RunFailed,
        "segment needs polygons",
    ),
    "damaged weights": case(
        "TypeError",
        "ERROR ❌️ /models/w.pt is not a loadable checkpoint — the file is empty, truncated or corrupted (RuntimeError: "
        "PytorchStreamReader failed reading zip archive: failed finding central directory.",
        RunFailed,
        "weights file cannot be loaded",
    ),
    "foreign weights": case(
        "TypeError",
        "ERROR ❌️ /models/w.pt references types outside the supported Ultralytics checkpoint format.",
        RunFailed,
        "weights file cannot be loaded",
    ),
    "unpickled weights": case(
        "UnpicklingError",
        "Weights only load failed. In PyTorch 2.6, we changed the default value of `weights_only`",
        RunFailed,
        "weights file cannot be loaded",
    ),
    "package": case("ModuleNotFoundError", "No module named 'onnx'", MachineFailed, "package onnx is missing"),
    "file refused": case(
        "OSError",
        "[Errno 36] File name too long: '/runs/train_1/weights/last.pt'",
        MachineFailed,
        "could not use.*too long",
    ),
    "folder gone": case(
        "RuntimeError",
        "Parent directory /runs/train_1/weights does not exist.",
        MachineFailed,
        "could not use.*Parent directory",
    ),
    "unknown": case(
        "KeyError",
        "'something unexpected'\nmore",
        RunFailed,
        r"KeyError: 'something unexpected'; the run's",
    ),
    "wordless": case("AssertionError", "", RunFailed, "with AssertionError; the run's log"),
}


def evidence(**facts):
    return Evidence(
        **{"exit_code": 1, "phase": Phase.TRAINING, "epoch": 3, "batch": 16, "imgsz": 640, "free_disk": 3 * 2**30}
        | facts
    )


def crash(error, message, traceback=""):
    return Crashed(error=error, message=message, traceback=traceback, phase=Phase.VALIDATING)


@pytest.mark.parametrize(("error", "message", "kind", "sentence"), EXCEPTIONS.values(), ids=EXCEPTIONS)
def test_exception_becomes_one_sentence(error, message, kind, sentence):
    diagnosis = diagnose(evidence(crashed=crash(error, message)))

    assert type(diagnosis) is kind
    assert re.search(sentence, str(diagnosis))
    assert "\n" not in str(diagnosis)
    assert len(str(diagnosis)) < 600
    assert "{" not in str(diagnosis)


@pytest.mark.parametrize("cause", CAUSES, ids=lambda cause: cause.pattern.pattern[:30])
def test_every_cause_has_example(cause):
    assert any(cause.pattern.search(f"{error}: {message}") for error, message, _, _ in EXCEPTIONS.values())


def test_message_names_phase_and_epoch():
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


def test_halved_batch_is_used_for_hint():
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
    "a death after an error that was printed": (
        -6,
        [
            "  1/3 ━━━",
            "terminate called after throwing an instance of 'c10::AcceleratorError'",
            "  what():  CUDA error: an illegal memory access was encountered",
        ],
        "GPU or its driver.*illegal memory access",
    ),
    "a loader that was killed": (1, ["RuntimeError: DataLoader worker (pid 1) is killed by signal: Killed."], "memory"),
    "bad_alloc": (-6, ["terminate called after throwing an instance of 'std::bad_alloc'"], "host ran out of memory"),
    "torchrun's child": (
        1,
        ["torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 MiB."],
        "GPU ran out of memory",
    ),
    "a segmentation fault": (
        -11,
        ["Fatal Python error: Segmentation fault", "", "Thread 0x1 (most recent call first):", '  File "x.py", line 1'],
        "SIGSEGV.*Fatal Python error",
    ),
    "a bus error": (-7, ["  2/3 ━━━"], "/dev/shm"),
    "a kill": (-9, ["  2/3 ━━━"], r"killed while training \(epoch 3\) \(SIGKILL\).*memory"),
    "a kill that a shell reports": (137, [], "SIGKILL"),
    "an exit code": (3, ["done, I think", " "], "exit code 3.*done, I think"),
    "silence": (0, [], "exit code 0.*it printed nothing"),
    "a warning that was survived": (
        -15,
        ["WARNING ⚠️ 1.jpg: ignoring corrupt image/label: [Errno 30] Read-only file system", "  2/3 ━━━"],
        "SIGTERM",
    ),
    "an unknown signal": (-50, [], "signal 50|SIGRT"),
}


@pytest.mark.parametrize(("code", "output", "sentence"), OUTPUTS.values(), ids=OUTPUTS)
def test_death_without_event_is_diagnosed_from_code_and_output(code, output, sentence):
    diagnosis = diagnose(evidence(exit_code=code, output=output))

    assert re.search(sentence, str(diagnosis))
    assert "\n" not in str(diagnosis)


def test_kernel_oom_kill_count_overrides_output():
    facts = evidence(exit_code=-9, output=["ERROR something else"], oom_kills=1)

    assert "out-of-memory killer" in str(diagnose(facts))
    assert "most likely" in str(diagnose(dataclasses.replace(facts, oom_kills=0)))


def test_unexplained_death_is_retried():
    assert isinstance(diagnose(evidence(exit_code=-11)), MachineFailed)


def starting(**facts):
    return evidence(phase=Phase.STARTING, epoch=0, **facts)


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"exit_code": 1, "output": ["ImportError: libcudart.so.13: cannot open shared object file"]}, "libcudart"),
        ({"exit_code": 127, "output": ["cannot start /venv/bin/python: No such file or directory"]}, "cannot start"),
        ({"exit_code": 2, "output": ["WireError: an order of another version"]}, "another version"),
        ({"crashed": Crashed(error="ImportError", message="libcudart.so.13", traceback="", phase=Phase.STARTING,
                             is_installation=True)}, "ImportError: libcudart"),
    ],
)  # fmt: skip
def test_exit_before_order_is_host_failure(facts, words):
    diagnosis = diagnose(starting(**facts))

    assert type(diagnosis) is HostFailed
    assert re.search(f"while starting.*{words}.*install requirements.txt again", str(diagnosis))


@pytest.mark.parametrize(
    "facts",
    [
        {"phase": Phase.STARTING, "exit_code": -9},  # from the kernel or a person
        {"phase": Phase.STARTING, "crashed": crash("KeyError", "x")},  # after it has read its order
        {"phase": Phase.LOADING, "exit_code": 1},
        {"phase": Phase.LOADING, "crashed": dataclasses.replace(crash("KeyError", "x"), is_installation=True)},
    ],
)
def test_exit_after_order_is_not_host_failure(facts):
    assert not isinstance(diagnose(evidence(**facts)), HostFailed)


def test_stuck_training_names_phase_and_setting():
    assert "1800 s while validating (epoch 7)" in str(stuck(Phase.VALIDATING, 7, 1800.0))
    assert "STALL_SECONDS" in str(stuck(Phase.VALIDATING, 7, 1800.0))
    assert "not ready after 300 s" in str(stuck(Phase.STARTING, 0, 300.0))
    assert isinstance(stuck(Phase.STARTING, 0, 300.0), HostFailed)
    assert not isinstance(stuck(Phase.TRAINING, 1, 300.0), HostFailed)


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
def test_installed_libraries_have_expected_messages(path, words):
    assert words in (PACKAGES / path).read_text()
