"""All comparisons with what one would use instead, one after the other.

    python experiments/benchmarks/all.py [--out experiments/benchmarks/records.jsonl] [--tiny]

Takes about twelve minutes on two free cores. Each script runs in a process of its own; a script
that fails is named at the end, and the others run. lightly-train is compared where it is installed
in the same environment. `gpu.py` runs where there is a GPU, and takes longer than all others.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
SCRIPTS = {
    "training.py": "--rounds 3 --seconds 3.5",
    "distillation.py": "--rounds 3 --seconds 3.5",
    "augmentation.py": "--rounds 5",
    "linear_probe.py": "--rounds 3 --rows 20000",
    "knn.py": "--rounds 3 --bank 25000 --queries 5000",
    "gpu.py": "",
}
TINY = {
    "training.py": "--rounds 1 --seconds 0.1 --models small",
    "distillation.py": "--rounds 1 --seconds 0.1 --size 56 --batch 2",
    "augmentation.py": "--rounds 1 --batches 1",
    "linear_probe.py": "--rounds 1 --rows 12000",
    "knn.py": "--rounds 1 --bank 2000 --queries 200",
    "gpu.py": "--rounds 1 --steps 1",
}
"""To see whether everything works: these numbers mean nothing."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="append the records, one JSON line each")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes, to see that all works")
    parser.add_argument("--only", nargs="+", choices=SCRIPTS, default=tuple(SCRIPTS))
    args = parser.parse_args()
    failed = []
    for script in args.only:
        words = (TINY if args.tiny else SCRIPTS)[script].split()
        words += ["--out", str(args.out.resolve())] if args.out else []
        print(f"== {script} {' '.join(words)}", flush=True)
        began = time.perf_counter()
        code = subprocess.run([sys.executable, FOLDER / script, *words], check=False).returncode
        print(f"== {script}: {time.perf_counter() - began:.0f} s", flush=True)
        failed += [script] if code else []
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
