"""Never reads its stdin, so that a long training order fills the pipe."""

import time

from protocol import phase

phase("training")
time.sleep(60)
