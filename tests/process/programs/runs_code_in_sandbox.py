"""Enters the sandbox for the training order on stdin. Then runs each code snippet of the second line on stdin.

Prints the results as JSON.
"""

import json
import os
import sys
import time

from trainer.training.child.confinement import confine
from trainer.training.wire import decode_command

order = decode_command(sys.stdin.buffer.readline())
snippets = json.loads(sys.stdin.readline())
began = time.process_time()
missing = confine(order, os.environ)
milliseconds = (time.process_time() - began) * 1000
results = {}
for code in snippets:
    try:
        exec(code, {})
        results[code] = "done"
    except OSError as error:
        results[code] = type(error).__name__
print(json.dumps({"missing": missing, "milliseconds": milliseconds, "results": results}))
