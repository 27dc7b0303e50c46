"""Exceptions of the installed libraries: type, message, resulting error, and a pattern that the diagnosis matches."""

from trainer.core.errors import HostSuspected, MachineFailed, RunFailed

EXCEPTIONS = {
    "cuda out of memory": (
        "OutOfMemoryError",
        (
            "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 23.68 GiB of which 1.94 GiB is "
            "free. Including non-PyTorch memory, this process has 21.72 GiB memory in use."
        ),
        RunFailed,
        "GPU ran out of memory.*batch 16, image size 640.*smaller batch",
    ),
    "cublas out of memory": (
        "RuntimeError",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        RunFailed,
        "GPU ran out of memory",
    ),
    "cpu out of memory": (
        "RuntimeError",
        (
            "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to "
            "allocate 400000000000000 bytes. Error code 12 (Cannot allocate memory)"
        ),
        MachineFailed,
        "host ran out of memory.*fewer workers",
    ),
    "python out of memory": ("MemoryError", "", MachineFailed, "host ran out of memory"),
    "numpy out of memory": (
        "_ArrayMemoryError",
        "Unable to allocate 36.4 TiB for an array with shape (9999999999999,)",
        MachineFailed,
        "host ran out of memory",
    ),
    "DataLoader worker killed": (
        "RuntimeError",
        "DataLoader worker (pid 4711) is killed by signal: Killed. ",
        MachineFailed,
        "host ran out of memory",
    ),
    "DataLoader worker exited": (
        "RuntimeError",
        "DataLoader worker (pid(s) 28712) exited unexpectedly",
        MachineFailed,
        "host ran out of memory",
    ),
    "DataLoader worker with bus error": (
        "RuntimeError",
        (
            "DataLoader worker (pid 22) is killed by signal: Bus error. It is possible that dataloader's workers are out "
            "of shared memory. Please try to raise your shared memory limit."
        ),
        MachineFailed,
        "/dev/shm was full.*--shm-size",
    ),
    "full shared memory": (
        "RuntimeError",
        "unable to mmap 78643200 bytes from file </torch_4242_17>: Cannot allocate memory (12)",
        MachineFailed,
        "host ran out of memory",
    ),
    "shared memory not allocated": (
        "RuntimeError",
        "unable to allocate shared memory(shm) for file </torch_42_1_0>: Resource temporarily unavailable (11)",
        MachineFailed,
        "/dev/shm",
    ),
    "shared memory not opened": (
        "RuntimeError",
        "unable to open shared memory object </torch_31_9> in read-write mode: Too many open files (24)",
        MachineFailed,
        "/dev/shm",
    ),
    "too many open files": (
        "RuntimeError",
        "received 0 items of ancdata",
        MachineFailed,
        "limit of open files.*LimitNOFILE",
    ),
    "too many threads": (
        "RuntimeError",
        "can't start new thread",
        MachineFailed,
        "limit of open files, threads.*TasksMax",
    ),
    "disk full": (
        "OSError",
        "[Errno 28] No space left on device: '/runs/train_1/weights/last.pt'",
        MachineFailed,
        r"disk was full.*3\.0 GiB are free",
    ),
    "disk quota exceeded": ("OSError", "[Errno 122] Disk quota exceeded", MachineFailed, "disk was full"),
    "torch.save on a full disk": (
        "RuntimeError",
        "[enforce fail at inline_container.cc:671] . unexpected pos 704 vs 598",
        MachineFailed,
        "disk was full",
    ),
    "read-only file system": (
        "OSError",
        "[Errno 30] Read-only file system: '/runs/train_1/results.csv'",
        MachineFailed,
        "mount and the permissions",
    ),
    "permission denied": (
        "PermissionError",
        "[Errno 13] Permission denied: '/runs/x'",
        MachineFailed,
        "mount and the permissions",
    ),
    "stale mount": ("OSError", "[Errno 116] Stale file handle: '/data/1.jpg'", HostSuspected, "network mount failed"),
    "NaN": (
        "RuntimeError",
        "Training failed: NaN persisted for 4 epochs",
        RunFailed,
        "diverged.*learning rate",
    ),
    "NaN without checkpoint": (
        "RuntimeError",
        "Loss NaN/Inf detected but no valid last.pt is available for recovery",
        RunFailed,
        "diverged",
    ),
    "CUDA launch failure": (
        "AcceleratorError",
        (
            "CUDA error: unspecified launch failure\nCUDA kernel errors might be asynchronously reported at some other API "
            "call, so the stacktrace below might be incorrect.\nFor debugging consider passing CUDA_LAUNCH_BLOCKING=1"
        ),
        MachineFailed,
        "GPU or its driver failed.*unspecified launch failure",
    ),
    "no CUDA device": (
        "RuntimeError",
        "CUDA error: no CUDA-capable device is detected",
        HostSuspected,
        "GPU or its driver",
    ),
    "no NVIDIA driver": (
        "RuntimeError",
        (
            "Found no NVIDIA driver on your system. Please check that you have an NVIDIA GPU and installed a driver from "
            "http://www.nvidia.com/Download/index.aspx"
        ),
        HostSuspected,
        "GPU or its driver",
    ),
    "CUDA device busy": (
        "AcceleratorError",
        "CUDA error: CUDA-capable device(s) is/are busy or unavailable",
        HostSuspected,
        "GPU or its driver",
    ),
    "GPU memory error": (
        "AcceleratorError",
        "CUDA error: uncorrectable ECC error encountered",
        HostSuspected,
        "GPU or its driver",
    ),
    "illegal memory access": (
        "AcceleratorError",
        "CUDA error: an illegal memory access was encountered",
        MachineFailed,
        "GPU or its driver",
    ),
    "invalid device index": (
        "ValueError",
        (
            "Invalid CUDA 'device=0' requested. Use 'device=cpu' or pass valid CUDA device(s) if available\n\n"
            "torch.cuda.is_available(): False"
        ),
        HostSuspected,
        "GPU or its driver",
    ),
    "device-side assert": (
        "AcceleratorError",
        "CUDA error: device-side assert triggered\nCUDA kernel errors might be asynchronously",
        RunFailed,
        "class index",
    ),
    "outdated NVIDIA driver": (
        "RuntimeError",
        "The NVIDIA driver on your system is too old (found version 11040).",
        HostSuspected,
        "torch does not support",
    ),
    "unsupported new GPU": (
        "AcceleratorError",
        "CUDA error: no kernel image is available for execution on the device",
        HostSuspected,
        "torch does not support",
    ),
    "NCCL error": (
        "DistBackendError",
        "NCCL error in: /pytorch/torch/csrc/distributed/c10d/NCCLUtils.cpp:94, unhandled cuda error",
        MachineFailed,
        "lost the connection.*one GPU",
    ),
    "missing image": (
        "FileNotFoundError",
        (
            "Caught FileNotFoundError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n"
            '  File "torch/utils/data/_utils/worker.py", line 349, in _worker_loop\n    raise MemoryError  # never mind\n'
            "FileNotFoundError: Image Not Found /data/images/7.jpg\n"
        ),
        MachineFailed,
        r"is missing.*Image Not Found /data/images/7\.jpg",
    ),
    "missing data.yaml": (
        "RuntimeError",
        "Dataset '/runs/view/data.yaml' error ❌ '/runs/view/data.yaml' does not exist",
        MachineFailed,
        "is missing",
    ),
    "class out of range": (
        "RuntimeError",
        (
            "No valid images found in /runs/view/labels/train.cache.\n  /runs/view/images/1.jpg: ignoring corrupt "
            "image/label: Label class 7 exceeds dataset class count 2. Possible class labels are 0-1\nSee https://docs"
        ),
        RunFailed,
        "class that the dataset does not have.*Label class 7",
    ),
    "classes do not match dataset": (
        "RuntimeError",
        "2-class dataset requires class indices 0-1, but you have invalid class indices 1-2",
        RunFailed,
        "0-based",
    ),
    "no labels": (
        "ValueError",
        "train: No labels found in /runs/view/labels/train.cache. See https://docs.ultralytics.com",
        RunFailed,
        "No usable images or labels",
    ),
    "no images": (
        "FileNotFoundError",
        "train: Error loading data from /runs/view/images/train\nSee https://docs.ultralytics.com",
        RunFailed,
        "No usable images or labels",
    ),
    "labels of another task": (
        "ValueError",
        "Segment dataset requires equal numbers of boxes and segments, but got len(segments) = 0",
        RunFailed,
        "segment needs polygons",
    ),
    "damaged weights": (
        "TypeError",
        (
            "ERROR ❌️ /models/w.pt is not a loadable checkpoint — the file is empty, truncated or corrupted (RuntimeError: "
            "PytorchStreamReader failed reading zip archive: failed finding central directory."
        ),
        RunFailed,
        "weights file cannot be loaded",
    ),
    "weights in another format": (
        "TypeError",
        "ERROR ❌️ /models/w.pt references types outside the supported Ultralytics checkpoint format.",
        RunFailed,
        "weights file cannot be loaded",
    ),
    "weights rejected by torch.load": (
        "UnpicklingError",
        "Weights only load failed. In PyTorch 2.6, we changed the default value of `weights_only`",
        RunFailed,
        "weights file cannot be loaded",
    ),
    "missing package": ("ModuleNotFoundError", "No module named 'onnx'", MachineFailed, "package onnx is missing"),
    "file name too long": (
        "OSError",
        "[Errno 36] File name too long: '/runs/train_1/weights/last.pt'",
        MachineFailed,
        "could not use.*too long",
    ),
    "missing folder": (
        "RuntimeError",
        "Parent directory /runs/train_1/weights does not exist.",
        MachineFailed,
        "could not use.*Parent directory",
    ),
    "unknown error": (
        "KeyError",
        "'something unexpected'\nmore",
        RunFailed,
        r"KeyError: 'something unexpected'; the run's",
    ),
    "error without a message": ("AssertionError", "", RunFailed, "with AssertionError; the run's log"),
}
