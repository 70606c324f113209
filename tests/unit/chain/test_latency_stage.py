"""The latency stage, on models that only advance a clock."""

import json
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from ssdistill.chain import latency as stage_module
from ssdistill.chain.latency import TIMING, latency, timing_of
from ssdistill.errors import UserError
from ssdistill.measure import before_after
from ssdistill.measure.memory import PeakMemory
from ssdistill.models.representation import Representation

SECONDS = {"teacher": 0.04, "distilled": 0.02, "pruned": 0.01, "int8": 0.004, "own": 0.002}
SIZES = {"teacher": 4000, "distilled": 2000, "pruned": 1000, "int8": 500, "own": 400}
FACTORS = {"eager": 10, "onnxruntime": 1, "own": 0.5}
"""How slow a runtime is."""


class Watch:
    now = 0.0


def made_from(role, stages):
    """Both files are made from the pruned model, which is made from the distilled one."""
    chain = {"pruned": "distilled", "int8": "pruned", "own": "pruned"}
    return {"model": stages[chain[role]]} if role in chain else {}


@pytest.fixture(autouse=True)
def watch(monkeypatch):
    Watch.now = 0.0
    for name in ("compare_latency", "paired_latency"):
        timed = getattr(stage_module, name)

        def with_clock(*args, timed=timed, **options):
            return timed(*args, clock=lambda: Watch.now, **options)

        monkeypatch.setattr(stage_module, name, with_clock)


class Eager(nn.Module):
    """A PyTorch model of known speed."""

    def __init__(self, name):
        super().__init__()
        self.name, self.embed_dim, self.net = name, 4, nn.Linear(1, 1)
        self.device = torch.device("cpu")

    def example(self, count):
        return torch.zeros(count, 3, 2, 2)

    def forward(self, x):
        Watch.now += SECONDS[self.name] * len(x) * FACTORS["eager"]
        return Representation(x.flatten(1)[:, :4])


class File:
    def __init__(self, name, runtime="onnxruntime"):
        self.name, self.runtime, self.session_threads = name, runtime, 0
        self.spec = SimpleNamespace(image_size=2)

    def version(self):
        return f"{self.runtime} 1.0"

    def __call__(self, x):
        Watch.now += SECONDS[self.name] * len(x) * FACTORS[self.runtime] / self.session_threads


@pytest.fixture
def timed(tmp_path, monkeypatch):
    """``timed(*cannot)``: metrics and words of the stage; ``cannot`` names models and runtimes
    that cannot be put together."""

    @contextmanager
    def written_for(runtime, model):
        if (model.name, runtime) in refused:
            raise UserError("cannot")
        yield File(model.name, runtime)

    refused = set()
    monkeypatch.setattr(stage_module, "written_for", written_for)
    monkeypatch.setattr(stage_module, "all_threads", lambda: 2)
    kinds = {"teacher": "pretrain", "distilled": "distill"}
    models = {
        "teacher": Eager("teacher"),
        "distilled": Eager("distilled"),
        "pruned": Eager("pruned"),
        "int8": File("int8"),
        "own": File("own", "own"),
    }
    parents = {}
    for role in models:
        folder = tmp_path / role
        (folder / "model").mkdir(parents=True)
        (folder / "model" / "model.bin").write_bytes(bytes(SIZES[role]))
        parents[role] = SimpleNamespace(
            role=role,
            kind=kinds.get(role, "compress"),
            folder=lambda root, f=folder: f,
            parents=made_from(role, parents),
            digest=role,
            seed=0,
        )
    workspace = SimpleNamespace(root=tmp_path, encoder=lambda parent: models[parent.role])
    config = {"batch_sizes": [1, 64], "memory": False}
    stage = SimpleNamespace(parents=parents, config=config, folder=lambda root: Path(root))

    def run(*cannot, memory=False):
        config["memory"] = memory
        refused.update(cannot)
        tracker = SimpleNamespace(run=SimpleNamespace(folder=tmp_path))
        metrics = latency(stage, workspace, tracker)
        return metrics, timing_of(stage, tmp_path)

    return run


def test_every_model_has_its_latency_in_its_runtime_on_one_thread_and_on_all(timed):
    metrics, words = timed()
    for role, seconds in SECONDS.items():
        runtime = "own" if role == "own" else "onnxruntime"
        ms = seconds * 1000 * FACTORS[runtime]
        assert metrics[f"compress/latency_ms/{role}"] == pytest.approx(ms)
        assert metrics[f"compress/latency_p90_ms/{role}"] == pytest.approx(ms)
        assert metrics[f"compress/latency_batch64_ms/{role}"] == pytest.approx(64 * ms)
        assert metrics[f"compress/latency_all_threads_ms/{role}"] == pytest.approx(ms / 2)
        assert words[role]["runtime"] == f"{runtime} 1.0"


def test_the_gain_of_the_runtime_stands_apart_from_that_of_compression(timed):
    metrics, words = timed()
    assert metrics["compress/eager_ms/pruned"] == pytest.approx(100)
    assert metrics["compress/runtime_gain/pruned"] == pytest.approx(10)
    assert metrics["compress/speedup/pruned"] == pytest.approx(2)
    assert metrics["compress/speedup/int8"] == pytest.approx(5)
    # In its own runtime the uncompressed student would be twice as fast as in the others'.
    assert metrics["compress/speedup/own"] == pytest.approx(10)
    assert metrics["compress/speedup_batch64/own"] == pytest.approx(10)
    assert metrics["compress/speedup_low/int8"] <= metrics["compress/speedup/int8"]
    assert "compress/runtime_gain/int8" not in metrics and "compress/eager_ms/int8" not in metrics
    assert words["pruned"]["eager"].startswith("torch ") and words["int8"]["eager"] is None


def test_only_what_compression_made_is_compared_with_the_dense_student(timed):
    metrics, words = timed()
    assert metrics["compress/smaller/int8"] == 4 and metrics["compress/smaller/pruned"] == 2
    names = {"smaller", "speedup", "speedup_batch64"}
    assert not [f"{n}/{r}" for n in names for r in ("teacher", "distilled")
                if f"compress/{n}/{r}" in metrics]  # fmt: skip
    assert words["int8"]["reference"] == "distilled" and words["teacher"]["reference"] is None


def test_what_cannot_be_written_for_a_runtime_is_timed_in_pytorch_and_says_so(timed):
    metrics, words = timed(("pruned", "onnxruntime"), ("distilled", "own"))
    assert words["pruned"]["runtime"].startswith("torch ") and words["pruned"]["eager"] is None
    assert "compress/runtime_gain/pruned" not in metrics
    assert metrics["compress/speedup/pruned"] == pytest.approx(2)
    assert "compress/speedup/own" not in metrics
    assert metrics["compress/latency_ms/own"] == pytest.approx(1)


def test_the_words_name_instructions_and_threads_and_old_stages_have_none(timed, tmp_path):
    stage = SimpleNamespace(folder=lambda root: Path(root))
    assert timing_of(stage, tmp_path) == {}
    _, words = timed()
    content = json.loads((tmp_path / TIMING).read_text())
    assert words["int8"]["instructions"] == content["instructions"] != ""
    assert words["int8"]["threads"] == 2


def test_a_runtime_that_nobody_knows_is_an_error():
    opened = before_after.written_for("nowhere", Eager("pruned"))
    with pytest.raises(UserError, match="unknown runtime 'nowhere'"), opened:
        pass


def test_peak_memory_is_that_of_the_artifact_where_it_is_asked_for(timed, monkeypatch):
    peaks = {"pruned": (3, 7), "int8": (9, 5)}

    def peak_memory(folder):
        opening, running = peaks.get(folder.parent.name, (1, 1))
        return PeakMemory(opening, running, 1, 1)

    monkeypatch.setattr(stage_module, "peak_memory", peak_memory)
    metrics, _ = timed(memory=True)
    assert metrics["compress/memory/pruned"] == 7 and metrics["compress/memory/int8"] == 9
    metrics, _ = timed()
    assert not any(name.startswith("compress/memory") for name in metrics)
    # Only Linux tells.
    monkeypatch.setattr(stage_module, "peak_memory", lambda folder: None)
    metrics, _ = timed(memory=True)
    assert not any(name.startswith("compress/memory") for name in metrics)
