"""Importing this takes host-1 longer than others."""

import sys
import time

if "host-1" in sys.argv:
    time.sleep(1.5)
