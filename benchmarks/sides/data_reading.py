"""Reading a MindRecord file: answers each line on stdin with one timed pass over it as JSON.

python data_reading.py FILE shuffled|in_order|bytes|array BATCH_SIZE cold|warm

Plain sequential reading in two forms: `bytes` reads the bytes of all rows of the MindRecord file, 1 MiB at a time, into
one buffer; `array` reads batches of the same rows as int32 arrays from a file that holds nothing else (FILE.int32).
`cold` opens the MindRecord file anew for each pass and has the system forget it first: the first epoch of a training.
`warm` keeps it open: the epochs after that. Opening it is in no time.
"""

import json
import os
import sys
import time
from pathlib import Path

import numpy as np
from codellama_data import MindRecordRows, batches, open_rows

CHUNK = 1 << 20


def main() -> None:
    path, mode, batch_size, cache = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4]
    array = path.with_name(path.name + ".int32")
    buffer = bytearray(CHUNK)
    rows: MindRecordRows | None = None
    print(json.dumps({"ready": True}), flush=True)
    for _ in sys.stdin:
        if cache == "cold":
            forget(path)
            forget(array)
        rows = rows or open_rows(path, verify=False)
        steps = len(rows) // batch_size
        start = time.perf_counter()
        if mode == "bytes":
            with path.open("rb", buffering=0) as stream:
                stream.seek(int(rows._at[0]))  # header and empty pages before it are no rows
                while stream.readinto(buffer):
                    pass
        elif mode == "array":
            with array.open("rb") as stream:
                for _ in range(steps):
                    np.fromfile(stream, np.int32, batch_size * rows.row_length).reshape(batch_size, -1)
        else:
            iterator = batches(rows, batch_size, seed=0, shuffle=mode == "shuffled", epochs=1)
            for _ in range(steps):
                next(iterator)
        seconds = time.perf_counter() - start
        tokens = steps * batch_size * rows.row_length
        if cache == "cold":
            iterator = rows = None  # as long as a file is mapped, the system does not forget it
        print(json.dumps({"seconds": seconds, "tokens": tokens}), flush=True)


def forget(path: Path) -> None:
    """Drop the file from the page cache."""
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)


if __name__ == "__main__":
    main()
