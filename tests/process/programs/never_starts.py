"""Hangs before it would read its order, as an import on a broken network mount does."""

import time

time.sleep(60)
