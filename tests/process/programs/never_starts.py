"""Hangs before it reads its training order, like an import on a broken network mount."""

import time

time.sleep(60)
