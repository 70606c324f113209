"""Speed and accuracy of the linear probe compared with scikit-learn's logistic regression.

    python experiments/benchmarks/linear_probe.py [--npz cifar10.npz] [--out records.jsonl]

All read the same features: embeddings of a small ResNet with random weights, extracted once, or,
without a file, drawn ones as many as CIFAR-10's and 512 wide. Ours chooses its strength on a part
of the training labels; scikit-learn and, a third time, ours are given the one chosen.
They take turns, so that whatever else the machine does meets all; CPU seconds add up all threads
and say more than the clock where the machine is shared.
"""

import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import numpy as np
import torch
from measuring import MODELS, arguments, interleave, publish, ratio
from probe_memory import draw
from sklearn.linear_model import LogisticRegression

from ssdistill.evaluate.protocols.linear import LinearProbe, linear_probe
from ssdistill.label_free.features import extract
from ssdistill.models.backbones import build_encoder

DRAWN = {"rows": 60_000, "width": 512, "classes": 10}
WAYS = ("ours", "ours, one strength", "theirs")


@dataclass
class Race:
    """All probes on one set of features; CPU seconds and results are kept by turn."""

    train_ND: torch.Tensor
    train_labels: np.ndarray
    test_ND: torch.Tensor
    test_labels: np.ndarray
    cpu: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in WAYS})
    probe: LinearProbe | None = None
    top1: float = 0.0
    coefficient_gap: float = 0.0

    def ours(self) -> float:
        """Seconds of the probe, its choice of strength included."""
        began, began_cpu = time.perf_counter(), time.process_time()
        self.probe = linear_probe(self.train_ND, self.train_labels, self.test_ND, self.test_labels)
        self.cpu["ours"].append(time.process_time() - began_cpu)
        return time.perf_counter() - began

    def ours_alone(self) -> float:
        """Seconds of one fit at the strength that was chosen."""
        data = self.train_ND, self.train_labels, self.test_ND, self.test_labels
        began, began_cpu = time.perf_counter(), time.process_time()
        linear_probe(*data, strengths=[self.probe.strength])
        self.cpu["ours, one strength"].append(time.process_time() - began_cpu)
        return time.perf_counter() - began

    def theirs(self) -> float:
        """Seconds of one scikit-learn fit (its default tolerance) at the strength ours chose."""
        train_ND, test_ND = self.train_ND.numpy(), self.test_ND.numpy()
        began, began_cpu = time.perf_counter(), time.process_time()
        mean_D, std_D = train_ND.mean(0), train_ND.std(0)
        std_D = np.where(std_D > 1e-6 * np.abs(mean_D), std_D, 1)
        model = LogisticRegression(C=1 / (len(train_ND) * self.probe.strength), max_iter=2000)
        model.fit((train_ND - mean_D) / std_D, self.train_labels)
        self.top1 = 100 * model.score((test_ND - mean_D) / std_D, self.test_labels)
        self.cpu["theirs"].append(time.process_time() - began_cpu)
        seconds = time.perf_counter() - began
        gap_KD = np.abs(model.coef_ - self.probe.weight_KD.numpy() * std_D)
        self.coefficient_gap = float(gap_KD.max() / np.abs(model.coef_).max())
        return seconds


def embeddings(data: dict[str, np.ndarray], precision: str) -> Race:
    """Embeddings of both splits from the small ResNet at its initial weights."""
    torch.manual_seed(0)
    size = data["train_images"].shape[1]
    encoder = build_encoder(MODELS["small"], size)
    parts = []
    for split in ("train", "test"):
        parts.append(extract(encoder, data[f"{split}_images"], size, precision=precision))
        parts.append(data[f"{split}_labels"].astype(np.int64))
    return Race(*parts)


def drawn(rows: int) -> Race:
    """Features without any images; 10,000 of ``rows`` are tested on."""
    with tempfile.TemporaryDirectory() as folder:
        draw(Path(folder), **{**DRAWN, "rows": rows})
        z_ND = torch.from_numpy(np.load(Path(folder) / "z.npy"))
        label_N = np.load(Path(folder) / "labels.npy")
    return Race(z_ND[:-10_000], label_N[:-10_000], z_ND[-10_000:], label_N[-10_000:])


def main() -> None:
    parser = arguments(__doc__, rounds=3)
    parser.add_argument("--rows", type=int, default=DRAWN["rows"], help="drawn, 10000 for tests")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="bf16")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    began = time.perf_counter()
    if args.npz is None:
        race = drawn(args.rows)
    else:
        with np.load(args.npz) as arrays:
            race = embeddings({name: arrays[name] for name in arrays.files}, args.precision)
    extraction = time.perf_counter() - began
    turns = dict(zip(WAYS, (race.ours, race.ours_alone, race.theirs), strict=True))
    seconds = interleave(turns, args.rounds, "linear probe")
    cpu = {name: values[1:] for name, values in race.cpu.items()}
    ratios = {
        "scikit-learn / ssdistill, seconds": ratio(seconds["theirs"], seconds["ours"]),
        "scikit-learn / ssdistill, CPU seconds": ratio(cpu["theirs"], cpu["ours"]),
        "the same at one strength, CPU seconds": ratio(cpu["theirs"], cpu["ours, one strength"]),
    }
    source = "drawn features" if args.npz is None else f"extraction ({args.precision})"
    note = (
        f"{len(race.train_ND)} and {len(race.test_ND)} images, width {race.train_ND.shape[1]}, "
        f"{args.threads} threads; {source} {extraction:.1f} s, "
        f"probe {median(seconds['ours']):.1f} s with {len(race.probe.held_out_top1)} strengths "
        f"tried and {median(seconds['ours, one strength']):.1f} s with one, "
        f"one scikit-learn fit {median(seconds['theirs']):.1f} s; top-1 "
        f"{race.probe.top1:.2f} and {race.top1:.2f}, largest difference of a coefficient "
        f"{race.coefficient_gap:.1e} of the largest coefficient"
    )
    publish(args.out, "linear_probe", "Linear probe against scikit-learn", ratios, note)


if __name__ == "__main__":
    main()
