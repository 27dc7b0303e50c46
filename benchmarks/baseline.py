"""Run a plain training script, for comparison: `python -m benchmarks.baseline '[{"epochs": 1, …}, …]'`.

For each JSON object of arguments, the script prints the time at which the model starts to load, and trains once.
"""

import json
import sys
import time

from ultralytics import YOLO


def main() -> None:
    for arguments in json.loads(sys.argv[1]):
        print(json.dumps({"loading": time.time()}), flush=True)
        YOLO(arguments.pop("model")).train(**arguments)


if __name__ == "__main__":
    main()
