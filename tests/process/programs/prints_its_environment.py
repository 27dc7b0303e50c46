"""Prints its environment and the files in its home folder, then trains like trains_quickly."""

import os
import runpy
from pathlib import Path

for name, value in sorted(os.environ.items()):
    print(f"environment {name}={value}", flush=True)
for path in sorted(Path(os.environ["HOME"]).rglob("*")):
    if path.is_file() and not path.is_symlink():
        print(f"file {path.name}: {path.read_text(errors='replace')}", flush=True)

runpy.run_path(str(Path(__file__).with_name("trains_quickly.py")), run_name="__main__")
