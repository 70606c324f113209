"""A tiny experiment for wrong inputs, damages and kills: seconds from start to report."""

import hashlib
import json
from pathlib import Path

import numpy as np

CONFIG = """
schema: 1
name: tiny
profile: smoke
data: {kind: npz, path: DATA}
teacher: {encoder: &net {name: resnet10t, stem: small, stem_stride: 2,
  args: {layers: [1, 1, 0, 0], channels: [8, 16, 16, 16], stem_type: deep, stem_width: 8}}}
student: {encoder: *net}
pretrain: {kind: simclr, steps: 3, batch_size: 16}
control: null
distill:
  steps: 3
  batch_size: 16
  losses: {feature: {kind: simreg, depth: 2}, contrastive: {kind: infonce, queue: 32}}
compress:
  - {kind: prune, ratio: 0.5, round_to: 4}
evaluate: {low_shot: null, label_free_images: 20}
device: {precision: fp32, memory_format: contiguous, accelerator: cpu, threads: 1}
tracking: {wandb: disabled, log_every: 1}
checkpoint_seconds: 0
"""
TRAINING = (
    "compress=[]",
    "evaluate=null",
    "pretrain.steps=12",
    "distill.steps=12",
    "measure.latency=false",
)
"""Overrides for kills: more steps, nothing that is timed."""
TIMED = ("time/", "latency", "speedup", "runtime_gain", "eager_ms", "train/seconds")
"""What two runs of the same experiment need not agree in."""


def write_experiment(folder: Path) -> Path:
    """The config and its data: 48 + 24 images of noise in two classes."""
    generator = np.random.default_rng(0)
    data = folder / "data.npz"
    np.savez(
        data,
        train_images=generator.integers(0, 256, (48, 16, 16, 3), dtype=np.uint8),
        train_labels=np.arange(48) % 2,
        test_images=generator.integers(0, 256, (24, 16, 16, 3), dtype=np.uint8),
        test_labels=np.arange(24) % 2,
    )
    path = folder / "tiny.yaml"
    path.write_text(CONFIG.replace("DATA", str(data)))
    return path


def results(root: Path) -> dict[str, dict[str, float]]:
    """What the report says of every model, without what was timed."""
    (path,) = root.glob("tiny-*/records.jsonl")
    records = [json.loads(line) for line in path.read_text().splitlines()]
    return {
        record["model"]: {
            name: value
            for name, value in record["metrics"].items()
            if not any(word in name for word in TIMED)
        }
        for record in records
    }


def weights(root: Path) -> dict[str, str]:
    """sha256 of the weights that each finished stage holds."""
    return {
        str(path.parent.parent.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.glob("stages/*/s*/model/model.safetensors"))
    }


def contents(root: Path) -> set[str]:
    """sha256 of every file, wherever it lies: what is lost is missing from it."""
    return {
        hashlib.sha256(path.read_bytes()).hexdigest()
        for path in root.rglob("*")
        if path.is_file() and not path.is_symlink()
    }
