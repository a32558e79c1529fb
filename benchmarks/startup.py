"""How long a user waits for `kdcluster --help` and `kdcluster plan exp1`, beside Python itself. Alternating runs."""

import statistics
import subprocess
import sys
import tempfile
import time

COMMANDS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "kdcluster --help": [sys.executable, "-m", "kdcluster.cli", "--help"],
    "kdcluster plan exp1": [sys.executable, "-m", "kdcluster.cli", "plan", "exp1"],
}
RUNS = 15


def main() -> None:
    taken: dict[str, list[float]] = {name: [] for name in COMMANDS}
    with tempfile.TemporaryDirectory() as folder:
        for run in range(RUNS + 1):
            for name, argv in COMMANDS.items():
                started = time.perf_counter()
                subprocess.run(argv, cwd=folder, check=True, stdout=subprocess.DEVNULL)
                if run > 0:  # the first fills the page cache
                    taken[name].append(1000 * (time.perf_counter() - started))
    for name, times in taken.items():
        low, mid, high = min(times), statistics.median(times), max(times)
        print(f"{name:<20} median {mid:6.0f} ms   ({low:.0f} to {high:.0f}, n = {RUNS})")


if __name__ == "__main__":
    main()
