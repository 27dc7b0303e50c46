"""Measure every figure of docs/speed.md and print its table: `make bench`, or `python -m benchmarks [--tiny] [NAME …]`."""

from __future__ import annotations

import argparse
import importlib
import os
import platform

from benchmarks.figures import HEADER

NAMES = (
    "run",
    "loader",
    "stored_pixels",
    "labels",
    "sync",
    "datasets",
    "storage",
    "claim",
    "heartbeats",
    "idle",
)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="run one small round, to test the benchmark")
    parser.add_argument(
        "names", nargs="*", choices=[*NAMES, []], metavar="NAME", help=f"one of {', '.join(NAMES)}; default: all"
    )
    options = parser.parse_args()
    print(f"{os.cpu_count()} cores, {platform.machine()}, load {os.getloadavg()[0]:.1f}\n\n{HEADER}", flush=True)
    for name in options.names or NAMES:
        for figure in importlib.import_module(f"benchmarks.{name}").figures(tiny=options.tiny):
            print(figure.line(), flush=True)
    print(
        f"\nload at the end: {os.getloadavg()[0]:.1f} (if above {os.cpu_count()}, other processes also used the cores)"
    )


if __name__ == "__main__":
    main()
