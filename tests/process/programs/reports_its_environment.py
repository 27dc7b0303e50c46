"""Reports its environment, arguments, working directory, limits and open descriptors."""

import json
import os
import resource
import sys

from protocol import EVENTS, finished, order

content = order()
fds = {
    int(name): os.readlink(f"/proc/self/fd/{name}")
    for name in os.listdir("/proc/self/fd")
    if os.path.exists(f"/proc/self/fd/{name}")
}
with open(os.path.join(os.environ["TMPDIR"], "temporary"), "w") as file:
    file.write("left behind")
finished(
    environment=dict(os.environ),
    argv=sys.argv,
    cwd=os.getcwd(),
    order=content,
    fds={str(k): v for k, v in fds.items()},
    events=EVENTS,
    session=os.getsid(0),
    pid=os.getpid(),
    core=resource.getrlimit(resource.RLIMIT_CORE)[0],
    settings=json.load(open(os.path.join(os.environ["YOLO_CONFIG_DIR"], "Ultralytics", "settings.json"))),
)
