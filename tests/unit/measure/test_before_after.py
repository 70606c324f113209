import math
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from ssdistill.artifacts.artifact import save_encoder
from ssdistill.artifacts.runtimes.onnx_cache import float_onnx
from ssdistill.compress.gate import Gate
from ssdistill.errors import UserError
from ssdistill.label_free.agreement import agreement
from ssdistill.measure import before_after as measured
from ssdistill.measure.before_after import agreed_on, before_after, embeddings, same_runtime
from ssdistill.measure.model_costs import costs_of
from ssdistill.models.backbones import EncoderSettings, build_encoder
from ssdistill.models.wrapped import Wrapped


def narrow(channels, seed=0):
    torch.manual_seed(seed)
    args = {
        "layers": (1, 1, 0, 0),
        "channels": (*channels, 16, 16),
        "stem_type": "deep",
        "stem_width": 8,
    }
    return build_encoder(EncoderSettings(name="resnet10t", args=args, stem_stride=2), 16).eval()


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """(wide, narrow, inputs, folder of the wide one, folder of the narrow one)."""
    models = {"wide": narrow((16, 16)), "narrow": narrow((8, 16))}
    folders = {}
    for name, model in models.items():
        folders[name] = tmp_path_factory.mktemp(name)
        save_encoder(model, folders[name])
    inputs = torch.rand(30, 3, 16, 16)
    return models["wide"], models["narrow"], inputs, folders["wide"], folders["narrow"]


class Clock:
    """Every look at it is one second later, so every call takes one second."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        self.now += 1.0
        return self.now


@pytest.fixture(scope="module")
def twins(pair):
    """Both encoders in ONNX Runtime, written once."""
    with float_onnx(pair[0]) as wide, float_onnx(pair[1]) as small:
        yield {id(pair[0]): wide, id(pair[1]): small}


@pytest.fixture
def exported(twins, monkeypatch):
    """No test needs to write them again."""
    opened = contextmanager(lambda model: iter([twins[id(model)]]))
    monkeypatch.setattr(measured, "float_onnx", opened)


@pytest.fixture
def measured_pair(pair, exported):
    return before_after(*pair, clock=Clock())


def test_costs_stand_before_and_after(pair, measured_pair):
    metrics, _ = measured_pair
    wide, small, _, wide_folder, small_folder = pair
    for name, value in costs_of(small, small_folder).items():
        assert metrics[name] == value
    for name, value in costs_of(wide, wide_folder).items():
        assert metrics[f"{name}_before"] == value > metrics[name]
    ratio = metrics["compress/bytes_before"] / metrics["compress/bytes"]
    assert metrics["compress/smaller"] == pytest.approx(ratio) and ratio > 1


def test_both_are_timed_in_one_runtime_at_both_batch_sizes(measured_pair):
    metrics, facts = measured_pair
    assert facts["runtime"].startswith("onnxruntime ")
    for size in ("", "_batch64"):
        assert metrics[f"compress/latency{size}_ms"] == pytest.approx(1000)
        assert metrics[f"compress/latency{size}_ms_before"] == pytest.approx(1000)
        assert metrics[f"compress/speedup{size}"] == pytest.approx(1)
        assert metrics[f"compress/speedup{size}_low"] <= metrics[f"compress/speedup{size}_high"]


def test_agreement_is_that_of_their_embeddings_on_the_given_inputs(pair, measured_pair):
    wide, small, inputs, *_ = pair
    metrics, facts = measured_pair
    expected = agreement(embeddings(small, inputs), embeddings(wide, inputs), k=10)
    for name, value in expected.items():
        assert metrics[name.replace("agree/", "agree/parent/")] == value
    assert facts["cka"] == metrics["agree/parent/cka"]
    assert all(isinstance(value, int | float) for value in metrics.values())


def test_a_gate_reads_the_facts(measured_pair):
    metrics, facts = measured_pair
    assert facts["bytes"] == pytest.approx(1 / metrics["compress/smaller"]) and facts["bytes"] < 1
    assert facts["latency"] == pytest.approx(1)
    assert Gate(bytes=1.0, latency=1.0, cka=0.0).complaints({**facts, "cka": 0.5}) == []
    complaint, *_ = Gate(bytes=0.01).complaints(facts)
    assert complaint.startswith("bytes ")


def test_a_model_agrees_with_itself(pair, exported):
    wide, _, inputs, folder, _ = pair
    metrics, facts = before_after(wide, wide, inputs, folder, folder, clock=Clock())
    assert facts["cka"] == pytest.approx(1) and metrics["compress/smaller"] == 1
    assert metrics["agree/parent/cosine_p01"] == pytest.approx(1, abs=1e-5)
    assert metrics["agree/parent/knn_overlap"] == 1


class Runtime:
    """One that keeps nothing but the name of what was written for it."""

    file = "model.txt"

    def write(self, model, path):
        path.write_text(model.name)

    class opens:
        def __init__(self, path, embed_dim, spec):
            self.path, self.embed_dim, self.spec = path, embed_dim, spec


def test_for_a_runtimes_file_the_model_before_is_written_for_that_runtime_too(pair, monkeypatch):
    wide = pair[0]
    monkeypatch.setattr(measured, "RUNTIMES", {"mine": Runtime})
    file = SimpleNamespace(runtime="mine")
    with same_runtime(wide, file) as (after, before):
        assert after is file and before.path.read_text() == wide.name
        assert (before.embed_dim, before.spec) == (wide.embed_dim, wide.spec)
    assert not before.path.exists()


def test_two_files_for_one_runtime_are_timed_as_they_are(twins):
    wide, small = twins.values()
    with same_runtime(wide, small) as (after, before):
        assert after is small and before is wide


def test_what_onnx_cannot_hold_is_timed_in_pytorch_and_says_so(monkeypatch):
    @contextmanager
    def refuse(model):
        raise UserError("it cannot be exported")
        yield

    model = Wrapped(nn.Linear(6, 4), torch.rand(8, 6))
    monkeypatch.setattr(measured, "float_onnx", refuse)
    monkeypatch.setattr(measured, "costs_of", lambda *_: {"compress/bytes": 100})
    metrics, facts = before_after(model, model, torch.rand(9, 6), "", "", clock=Clock())
    assert facts["runtime"].startswith("torch ") and "compress/latency_ms" in metrics


def test_where_nothing_can_run_both_no_time_is_made_up(pair, twins, monkeypatch):
    wide, small, inputs, wide_folder, small_folder = pair

    def refuse(runtime, model):
        raise UserError("this runtime cannot hold it")

    monkeypatch.setattr(measured, "written_for", refuse)
    file = twins[id(small)]
    metrics, facts = before_after(wide, file, inputs, wide_folder, small_folder)
    assert not [name for name in metrics if "latency" in name or "speedup" in name]
    assert math.isnan(facts["latency"]) and "cannot hold" in facts["runtime"]
    assert Gate(latency=1.0).complaints(facts)


def test_files_for_different_runtimes_are_not_compared():
    files = SimpleNamespace(runtime="one"), SimpleNamespace(runtime="another")
    with pytest.raises(UserError, match="different runtimes"), same_runtime(*files):
        pass


def test_embeddings_leave_a_model_in_training_mode_as_it_was(make_encoder):
    encoder = make_encoder().train()
    state = {k: v.clone() for k, v in encoder.state_dict().items()}
    found_ND = embeddings(encoder, torch.rand(70, 3, 16, 16))
    assert found_ND.shape == (70, encoder.embed_dim) and encoder.training
    assert all(torch.equal(v, state[k]) for k, v in encoder.state_dict().items())


def test_a_handful_of_inputs_is_enough_and_nan_is_refused(pair, exported):
    wide, small, inputs, *folders = pair
    metrics, _ = before_after(wide, small, inputs[:5], *folders, clock=Clock())
    assert 0 <= metrics["agree/parent/knn_overlap"] <= 1
    with pytest.raises(UserError, match="NaN or infinite"):
        before_after(wide, small, inputs * float("nan"), *folders, clock=Clock())


def test_four_inputs_are_enough_to_say_how_two_models_agree(pair):
    wide, small, inputs, *_ = pair
    assert "agree/cka" in agreed_on(wide, small, inputs[:4])
    assert agreed_on(wide, small, inputs[:3]) == {}


def test_of_two_files_everything_is_known_but_the_macs(pair, twins):
    wide, small, inputs, *folders = pair
    files = twins[id(wide)], twins[id(small)]
    metrics, facts = before_after(*files, inputs, *folders, clock=Clock())
    assert metrics["compress/params"] < metrics["compress/params_before"]
    assert "compress/latency_ms" in metrics and "compress/macs" not in metrics
    assert facts["cka"] == metrics["agree/parent/cka"]
