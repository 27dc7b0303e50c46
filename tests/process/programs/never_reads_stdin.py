"""Never reads its stdin, so that a long training order fills the pipe."""

import time

from protocol import phase, send

send(kind="sandbox", missing=[])
phase("training")
time.sleep(60)
