"""Speed of the k-NN probe compared with scikit-learn's brute-force classifier.

    python experiments/benchmarks/knn.py [--queries 10000] [--out records.jsonl]

Both vote uniformly by cosine among the same generated vectors (a Gaussian cloud around each of
100 classes) on the same cores, and must give the same answers. They take turns, so that whatever
else the machine does meets both; CPU seconds add up all threads and say more than the clock where
the machine is shared.
"""

import time
from dataclasses import dataclass, field
from statistics import median

import numpy as np
import torch
from measuring import arguments, interleave, publish, ratio
from sklearn.neighbors import KNeighborsClassifier

from ssdistill.evaluate.probes.knn_probe import knn_probe
from ssdistill.label_free.candidates import has_fast_bf16

CLASSES = 100


@dataclass
class Race:
    """Both classifiers on one bank; CPU seconds are kept by turn, answers of the last one."""

    bank_MD: np.ndarray
    bank_labels: np.ndarray
    query_ND: np.ndarray
    query_labels: np.ndarray
    k: int
    cpu: dict[str, list[float]] = field(default_factory=lambda: {"ours": [], "theirs": []})
    answers: dict[str, np.ndarray] = field(default_factory=dict)

    def ours(self) -> float:
        """Seconds of the probe, checks and normalization included."""
        began, began_cpu = time.perf_counter(), time.process_time()
        data = self.bank_MD, self.bank_labels, self.query_ND, self.query_labels
        probe = knn_probe(*data, k=self.k, ks=(), weights="uniform")
        self.cpu["ours"].append(time.process_time() - began_cpu)
        self.answers["ours"] = probe.predictions
        return time.perf_counter() - began

    def theirs(self) -> float:
        """Seconds of scikit-learn's fit and answers."""
        began, began_cpu = time.perf_counter(), time.process_time()
        model = KNeighborsClassifier(self.k, metric="cosine", algorithm="brute")
        self.answers["theirs"] = model.fit(self.bank_MD, self.bank_labels).predict(self.query_ND)
        self.cpu["theirs"].append(time.process_time() - began_cpu)
        return time.perf_counter() - began


def clouds(bank: int, queries: int, width: int, k: int) -> Race:
    """Vectors around class means that are as long as the clouds are wide."""
    rng = np.random.default_rng(0)
    mean_KD = rng.standard_normal((CLASSES, width), dtype=np.float32)
    parts = []
    for count in (bank, queries):
        label_N = rng.integers(0, CLASSES, count)
        cloud_ND = rng.standard_normal((count, width), dtype=np.float32)
        parts += [mean_KD[label_N] + 2 * cloud_ND, label_N]
    return Race(*parts, k=k)


def main() -> None:
    parser = arguments(__doc__, rounds=3)
    parser.add_argument("--bank", type=int, default=50_000, help="vectors that vote")
    parser.add_argument("--queries", type=int, default=10_000, help="vectors that are classified")
    parser.add_argument("--width", type=int, default=512, help="numbers of a vector")
    parser.add_argument("--k", type=int, default=20, help="neighbors")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    race = clouds(args.bank, args.queries, args.width, args.k)
    turns = {"ours": race.ours, "theirs": race.theirs}
    seconds = interleave(turns, args.rounds, "k-NN")
    cpu = {name: values[1:] for name, values in race.cpu.items()}
    ratios = {
        "scikit-learn / ssdistill, seconds": ratio(seconds["theirs"], seconds["ours"]),
        "scikit-learn / ssdistill, CPU seconds": ratio(cpu["theirs"], cpu["ours"]),
    }
    quick = has_fast_bf16(torch.device("cpu"))
    same = 100 * float((race.answers["ours"] == race.answers["theirs"]).mean())
    note = (
        f"{args.bank} vectors of width {args.width}, {args.queries} queries, k={args.k}, "
        f"{args.threads} threads; medians: ssdistill {median(seconds['ours']):.1f} s "
        f"({median(cpu['ours']):.1f} CPU s), scikit-learn {median(seconds['theirs']):.1f} s "
        f"({median(cpu['theirs']):.1f} CPU s); bfloat16 in hardware: {'yes' if quick else 'no'}; "
        f"{same:.2f} % of the answers are the same"
    )
    publish(args.out, "knn", "k-NN probe against scikit-learn", ratios, note)


if __name__ == "__main__":
    main()
