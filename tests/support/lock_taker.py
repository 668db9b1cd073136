"""A process that takes a folder's lock when asked: ``python lock_taker.py``.

Each line on stdin is a moment (seconds since the epoch) and a folder. At that moment it asks for the lock, says
``took`` or why not, and keeps it until the next line, which is empty.
"""

import sys
import time
from pathlib import Path

from finetune.errors import CheckpointError
from finetune.folder.lock import FolderLock

for line in sys.stdin:
    moment, folder = line.rstrip("\n").split(" ", 1)
    while time.time() < float(moment):
        pass
    try:
        with FolderLock(Path(folder), "test"):
            print("took", flush=True)
            sys.stdin.readline()
    except CheckpointError as error:
        print(str(error), flush=True)
        sys.stdin.readline()
