"""Seconds and accuracy of the linear probe beside scikit-learn's logistic regression.

Both read the same embeddings of a small ResNet with random weights, extracted once and timed.
Ours chooses its strength on a part of the training labels; scikit-learn is given the one chosen.
The runs alternate, so that whatever else the machine does meets both; CPU seconds add up all
threads and say more than the clock where the machine is shared.

    python experiments/benchmarks/linear_probe.py --npz cifar10.npz --out linear_probe.jsonl
"""

import argparse
import json
import os
import platform
import statistics
import time
from pathlib import Path

import numpy as np
import sklearn
import torch
from sklearn.linear_model import LogisticRegression

from ssdistill.evaluate.features import extract
from ssdistill.evaluate.linear_probe import linear_probe
from ssdistill.models.backbones import EncoderSettings, build_encoder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--npz", type=Path, required=True, help="train_images, train_labels, test_…"
    )
    parser.add_argument("--out", type=Path, default=Path("linear_probe.jsonl"))
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="bf16")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with np.load(arguments.npz) as arrays:
        data = {name: arrays[name] for name in arrays.files}
    record = compare(data, arguments.precision, arguments.repeats)
    line = json.dumps({**record, **where(arguments.threads)})
    with arguments.out.open("a") as file:
        file.write(line + "\n")
    print(line)


def compare(data: dict[str, np.ndarray], precision: str, repeats: int) -> dict[str, object]:
    """Both probes on the embeddings of one random encoder; seconds are medians over repeats."""
    size = data["train_images"].shape[1]
    encoder = small_resnet(size)
    began, began_cpu = time.perf_counter(), time.process_time()
    train_ND, test_ND = (
        extract(encoder, data[f"{split}_images"], size, precision=precision)
        for split in ("train", "test")
    )
    extraction = time.perf_counter() - began
    extraction_cpu = time.process_time() - began_cpu
    labels = [data[f"{split}_labels"].astype(np.int64) for split in ("train", "test")]
    ours, theirs, cpu = [], [], []
    for _ in range(repeats):
        began = time.process_time()
        ours.append(linear_probe(train_ND, labels[0], test_ND, labels[1]))
        cpu.append(time.process_time() - began)
        theirs.append(
            scikit_learn(train_ND.numpy(), labels[0], test_ND.numpy(), labels[1], ours[-1])
        )
    seconds = statistics.median(probe.seconds for probe in ours)
    return {
        "benchmark": "linear_probe",
        "images": [len(train_ND), len(test_ND)],
        "width": train_ND.shape[1],
        "precision": precision,
        "extract_seconds": extraction,
        "extract_cpu_seconds": extraction_cpu,
        "probe_seconds": seconds,
        "probe_cpu_seconds": min(cpu),
        "probe_seconds_all": [probe.seconds for probe in ours],
        "total_seconds": extraction + seconds,
        "strengths_tried": len(ours[0].held_out_top1),
        "strength": ours[0].strength,
        "held_out_top1": ours[0].held_out_top1,
        "top1": ours[0].top1,
        "gradient": ours[0].gradient,
        "sklearn_seconds": statistics.median(run["seconds"] for run in theirs),
        "sklearn_seconds_all": [run["seconds"] for run in theirs],
        "sklearn_cpu_seconds": min(run["cpu_seconds"] for run in theirs),
        "sklearn_iterations": theirs[0]["iterations"],
        "sklearn_top1": theirs[0]["top1"],
        "largest_coefficient_gap": theirs[0]["gap"],
    }


def scikit_learn(train_ND, train_labels, test_ND, test_labels, ours) -> dict[str, float]:
    """One scikit-learn fit (its default tolerance) at the strength ours chose."""
    began, began_cpu = time.perf_counter(), time.process_time()
    mean_D, std_D = train_ND.mean(0), train_ND.std(0)
    std_D = np.where(std_D > 1e-6 * np.abs(mean_D), std_D, 1)
    model = LogisticRegression(C=1 / (len(train_ND) * ours.strength), max_iter=2000)
    model.fit((train_ND - mean_D) / std_D, train_labels)
    top1 = 100 * model.score((test_ND - mean_D) / std_D, test_labels)
    gap = np.abs(model.coef_ - ours.weight_KD.numpy() * std_D).max() / np.abs(model.coef_).max()
    return {
        "seconds": time.perf_counter() - began,
        "cpu_seconds": time.process_time() - began_cpu,
        "iterations": int(model.n_iter_[0]),
        "top1": top1,
        "gap": float(gap),
    }


def small_resnet(image_size: int) -> torch.nn.Module:
    """A three-stage ResNet, 307 thousand parameters, 128 wide, random weights."""
    torch.manual_seed(0)
    args = {
        "layers": (1, 1, 1, 0),
        "channels": (32, 64, 128, 128),
        "stem_type": "deep",
        "stem_width": 16,
    }
    settings = EncoderSettings(name="resnet10t", args=args, stem="small", stem_stride=2)
    return build_encoder(settings, image_size)


def where(threads: int) -> dict[str, object]:
    """What the seconds depend on beside the code."""
    return {
        "threads": threads,
        "load_average": os.getloadavg()[0],
        "machine": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "scikit_learn": sklearn.__version__,
    }


if __name__ == "__main__":
    main()
