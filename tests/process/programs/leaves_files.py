"""Leaves files in shared memory, and in the folders in which libraries look for their configuration.

Reports the planted files that it found there. Argument: a prefix for the names in /dev/shm.
"""

import contextlib
import os
import sys
import time
from pathlib import Path

from protocol import finished, order, phase

VARIABLES = "HOME", "TMPDIR", "MPLCONFIGDIR", "CUDA_CACHE_PATH", "XDG_CACHE_HOME", "XDG_CONFIG_HOME"
NAMES = "matplotlibrc", "sitecustomize.py", "fontlist-v9.json", "planted.pt"

order()
phase("training")
found = []
for folder in (Path(os.environ[name]) for name in VARIABLES):
    folder.mkdir(parents=True, exist_ok=True)
    for name in NAMES:
        found += [str(folder / name)] if (folder / name).exists() else []
        (folder / name).write_text("planted")
memory = Path("/dev/shm")
(memory / f"{sys.argv[1]}-file").write_bytes(bytes(1 << 20))
(memory / f"{sys.argv[1]}-folder" / "deep").mkdir(parents=True, exist_ok=True)
(memory / f"{sys.argv[1]}-folder" / "deep" / "file").touch()
with contextlib.suppress(FileExistsError):
    (memory / f"{sys.argv[1]}-link").symlink_to("/etc")
shared = memory / f"{sys.argv[1]}-shared"
shared.touch()
while shared.exists() and not shared.read_bytes():
    time.sleep(0.01)  # until the test has opened the file
(memory / f"{sys.argv[1]}-before").write_text("changed")
finished(found=found, folders=[os.environ[name] for name in VARIABLES])
