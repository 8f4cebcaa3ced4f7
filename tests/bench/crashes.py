"""`python -m tests.bench.crashes --power-losses 200 --kills 500`: is anything lost that was acknowledged?

Several senders (storescu over TCP, `dicomfs import` beside it) fill a store with objects of all sizes, under
all policies for duplicates; at a random moment a process is killed, or the disk loses its power
(`tests/disk.py`). After the next start everything that was ever acknowledged has to be there, bit for bit,
and nothing else. Prints what was found; the exit code is 1 if anything was lost or left.

The moments are chosen by `--seed`, but what happens at them is not: a round cannot be repeated exactly.
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

from tests.bench.rounds import crash


def main() -> int:
    """Run all, print what was found."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.crashes", description="Is anything lost that was acknowledged?"
    )
    parser.add_argument("--power-losses", type=int, default=20, metavar="N", help="needs root (20)")
    parser.add_argument("--kills", type=int, default=50, metavar="N", help="(50)")
    parser.add_argument("--seed", type=int, default=os.getpid(), help="of the random choices")
    options = parser.parse_args()
    is_clean = True
    with tempfile.TemporaryDirectory(prefix="dicomfs-crashes-") as folder:
        for what, rounds in (("power losses", options.power_losses), ("kills", options.kills)):
            if rounds:
                begin = time.monotonic()
                power = what == "power losses"
                tally = crash(rounds, options.seed, Path(folder, what.split()[0]), power=power)
                print(f"{rounds} {what}, seed {options.seed}, {time.monotonic() - begin:.0f} s")
                print("\n".join(tally.lines()), flush=True)
                is_clean = is_clean and tally.is_clean
    return 0 if is_clean else 1


if __name__ == "__main__":
    sys.exit(main())
