"""The process that reads datasets, after hostile code took it over: `attacking_dataset_process.py CODE`.

It starts and enters the sandbox as usual. Then it executes CODE instead of the job, and reports the result as an error.
"""

import sys

from trainer.core.errors import DatasetError
from trainer.datasets.confined import main
from trainer.datasets.inspection import Inspect


def attack(job, stop, room):
    try:
        exec(sys.argv[1], {"job": job})
    except OSError as error:
        raise DatasetError(type(error).__name__) from None
    raise DatasetError("done")


Inspect.run = attack
main.main()
