"""Never reads its stdin, so that a long order and many requests fill the pipe."""

import time

from protocol import phase

phase("training")
time.sleep(60)
