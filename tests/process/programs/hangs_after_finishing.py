"""Says that it is finished, and then does not end."""

import time

from speaking import finished, order, phase

order()
phase("training")
finished(fine=True)
time.sleep(60)
