"""`msrun` for every machine but the first: starts this machine's ranks, and never the job's scheduler.

msrun starts the scheduler wherever master_addr is an address of the machine. Of two launches on one machine, the second
would start another, which finds the port taken. msrun has no flag against it, so this replaces the function that
decides (`mindspore/parallel/cluster/process_entity/_api.py`).
"""

from __future__ import annotations

import importlib
from importlib.metadata import version

_DECIDES = "_is_local_ip"
_TESTED = "2.10.0"


def main() -> None:
    """Runs msrun with the arguments of the command line.

    Raises:
        SystemExit: with a line that says what to do, where this MindSpore decides otherwise.
    """
    try:
        deciding = importlib.import_module("mindspore.parallel.cluster.process_entity._api")
        msrun = importlib.import_module("mindspore.parallel.cluster.run").main
        getattr(deciding, _DECIDES)
    except (ImportError, AttributeError) as error:
        raise SystemExit(
            f"mindspore {version('mindspore')} starts its scheduler otherwise than {_TESTED}, with which this was"
            f" tested: {error}; install mindspore=={_TESTED}, or start the ranks of each machine with msrun itself"
        ) from None
    setattr(deciding, _DECIDES, lambda _: False)
    msrun()


if __name__ == "__main__":
    main()
