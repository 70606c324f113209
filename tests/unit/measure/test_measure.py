import copy
import gzip
import json

import pytest
import torch

from ssdistill.artifacts.artifact import save_encoder
from ssdistill.artifacts.runtimes.onnx_cache import float_onnx
from ssdistill.errors import UserError
from ssdistill.measure.hardware import all_threads, instruction_set, int8_saturates
from ssdistill.measure.latency import compare_latency, latency_ms, paired_latency
from ssdistill.measure.macs import count_macs
from ssdistill.measure.parameters import count_parameters, file_bytes, gzip_bytes
from ssdistill.measure.precision import CANDIDATES, choose_precision, precision_key
from ssdistill.models.backbones import EncoderSettings, build_encoder

SMALL = {
    "layers": (1, 1, 1, 0),
    "channels": (16, 32, 64, 64),
    "stem_type": "deep",
    "stem_width": 8,
    "zero_init_last": False,
}


@pytest.fixture(scope="module")
def encoder():
    settings = EncoderSettings(name="resnet10t", args=SMALL, stem_stride=2)
    encoder = build_encoder(settings, 32)
    # Fresh batch norms fold to biases of zero, which an exporter drops.
    encoder.train()(torch.rand(8, 3, 32, 32))
    return encoder.eval()


def conv_macs(channels_in, channels_out, kernel, side):
    return channels_in * channels_out * kernel**2 * side**2


def closed_form(stem_side):
    """The small stem at ``stem_side``, then three one-block stages; stages 2 and 3 halve."""
    total, before = conv_macs(3, 16, 3, stem_side), 16
    for depth, channels in enumerate((16, 32, 64)):
        side = stem_side // 2**depth
        total += conv_macs(before, channels, 3, side) + conv_macs(channels, channels, 3, side)
        total += conv_macs(before, channels, 1, side) if depth else 0
        before = channels
    return total


@pytest.fixture(scope="module")
def twin(encoder):
    with float_onnx(encoder) as twin:
        yield twin


def test_macs_equal_the_closed_form(encoder):
    assert count_macs(encoder) == closed_form(16)
    assert count_macs(encoder, image_size=64) == closed_form(32)
    assert not encoder.training


def test_macs_of_a_transformer_include_attention():
    args = {"img_size": 32, "patch_size": 8, "depth": 1, "embed_dim": 48, "num_heads": 3}
    vit = build_encoder(EncoderSettings(name="vit_tiny_patch16_224", args=args), 32)
    tokens, width = 17, 48
    linear = tokens * (3 + 1 + 4 + 4) * width**2
    attention = 2 * tokens**2 * width
    assert count_macs(vit) == linear + attention + 16 * 3 * 8**2 * width
    assert vit.training


def test_parameters_and_zeros(encoder):
    assert count_parameters(encoder) == sum(p.numel() for p in encoder.parameters()) == 77392
    with torch.no_grad():
        zeros = sum(int((p == 0).sum()) for p in encoder.parameters())
    assert count_parameters(encoder, nonzero=True) == 77392 - zeros
    encoder.projector = torch.nn.Linear(encoder.embed_dim, 128)
    assert count_parameters(encoder) == 77392  # nobody ships a teacher's head


def test_parameters_of_an_onnx_file_are_its_folded_weights(encoder, twin):
    convolutions = [m for m in encoder.modules() if isinstance(m, torch.nn.Conv2d)]
    folded = sum(m.weight.numel() + m.out_channels for m in convolutions)
    mean_and_std = 6
    assert count_parameters(twin) == folded + mean_and_std
    assert 0 < count_parameters(twin, nonzero=True) <= count_parameters(twin)


def test_file_bytes_is_the_weights_file(encoder, tmp_path):
    with pytest.raises(UserError, match="no model in"):
        file_bytes(tmp_path)
    save_encoder(encoder, tmp_path)
    assert file_bytes(tmp_path) == (tmp_path / "model.safetensors").stat().st_size > 4 * 77392
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"no model\.safetensors in"):
        gzip_bytes(tmp_path)


def test_several_files_of_one_model_are_added_up(tmp_path):
    (tmp_path / "model.xml").write_bytes(b"<net/>" * 100)
    (tmp_path / "model.bin").write_bytes(bytes(5000))
    (tmp_path / "notes.txt").write_bytes(bytes(9000))
    assert file_bytes(tmp_path) == 600 + 5000
    packed = [len(gzip.compress(c, compresslevel=6)) for c in (b"<net/>" * 100, bytes(5000))]
    assert gzip_bytes(tmp_path) == sum(packed)


def test_gzip_bytes_are_those_of_gzip_and_reward_zeros(encoder, tmp_path):
    save_encoder(encoder, tmp_path / "dense")
    content = (tmp_path / "dense" / "model.safetensors").read_bytes()
    dense = gzip_bytes(tmp_path / "dense")
    assert dense == len(gzip.compress(content, compresslevel=6))
    sparse = copy.deepcopy(encoder)
    with torch.no_grad():
        for parameter in sparse.parameters():
            parameter[torch.rand(parameter.shape) < 0.9] = 0
    save_encoder(sparse, tmp_path / "sparse")
    assert file_bytes(tmp_path / "sparse") == file_bytes(tmp_path / "dense")
    assert gzip_bytes(tmp_path / "sparse") < 0.4 * dense


def test_latency_states_runtime_threads_and_batch(encoder, twin):
    threads = torch.get_num_threads()
    encoders = {"torch": encoder, "onnx": twin}
    rows = compare_latency(encoders, batch_sizes=(1, 2), threads=1, rounds=2, calls=2)
    assert twin.session_threads == 0
    assert [(r.name, r.batch_size) for r in rows] == [
        ("torch", 1),
        ("onnx", 1),
        ("torch", 2),
        ("onnx", 2),
    ]
    assert all(0 < r.p50_ms <= r.p90_ms and r.calls >= 4 and r.threads == 1 for r in rows)
    assert rows[0].runtime.startswith("torch ") and rows[0].runtime.endswith("channels_last")
    assert rows[1].runtime.startswith("onnxruntime ")
    assert torch.get_num_threads() == threads
    assert encoder.net.conv1.weight.is_contiguous()
    assert latency_ms(encoder, rounds=1, calls=1) > 0


def test_a_speed_up_states_what_ran_the_model_and_what_its_reference(encoder, twin):
    found = paired_latency(twin, encoder, rounds=3, calls=1)
    assert found.runtime.startswith("onnxruntime ") and found.rounds == 3
    assert found.reference_runtime.startswith("torch ")
    assert 0 < found.speedup_low <= found.speedup <= found.speedup_high


def test_the_instruction_set_is_what_torch_uses_and_the_processor_has(tmp_path):
    used = torch.backends.cpu.get_cpu_capability()
    facts = tmp_path / "cpuinfo"
    facts.write_text("processor : 0\nflags : fpu amx_int8 avx512_vnni avx512_vnni_x\n")
    assert instruction_set(facts) == f"{used} (avx512_vnni, amx_int8)"
    facts.write_text("Features\t: fp asimd asimddp i8mm\n")
    assert instruction_set(facts) == f"{used} (asimddp, i8mm)"
    assert instruction_set(tmp_path / "none") == used
    assert all_threads() >= 1


@pytest.mark.parametrize(
    ("machine", "flags", "saturates"),
    [
        ("x86_64", "flags : fpu sse avx2 fma", True),
        ("AMD64", "flags : fpu avx512f avx512bw", True),
        ("x86_64", "flags : fpu avx2 avx_vnni", False),
        ("x86_64", "flags : fpu avx512f avx512_vnni", False),
        ("x86_64", "flags : fpu amx_int8", False),
        ("x86_64", "", False),
        ("aarch64", "Features : fp asimd", False),
    ],
)
def test_int8_saturates_on_x86_without_the_instructions(
    machine, flags, saturates, tmp_path, monkeypatch
):
    monkeypatch.setattr("platform.machine", lambda: machine)
    facts = tmp_path / "cpuinfo"
    facts.write_text(f"processor : 0\n{flags}\n")
    assert int8_saturates(facts) is saturates
    assert int8_saturates(tmp_path / "none") is False


class Bench:
    """Steps that only move a clock: ``costs`` seconds each, the first call ten times as much."""

    def __init__(self, costs):
        self.costs, self.now, self.calls = costs, 0.0, []

    def make_step(self, precision, memory_format):
        candidate = (precision, memory_format)

        def step():
            first = candidate not in self.calls
            self.calls.append(candidate)
            self.now += self.costs[candidate] * (10 if first else 1)

        return step

    def choose(self, **options):
        return choose_precision(self.make_step, clock=lambda: self.now, **options)


def test_the_fastest_candidate_is_chosen_after_a_warm_up():
    bench = Bench(dict(zip(CANDIDATES, (1.0, 0.8, 0.9, 0.5), strict=True)))
    choice = bench.choose()
    assert (choice.precision, choice.memory_format) == ("bf16", "channels_last")
    assert choice.seconds["bf16 channels_last"] == pytest.approx(0.5)
    assert bench.calls[4:12] == [*CANDIDATES, *CANDIDATES]


def test_the_plainer_candidate_wins_a_draw_but_never_costs_five_percent():
    bench = Bench(dict(zip(CANDIDATES, (1.0, 0.99, 1.5, 1.4), strict=True)))
    choice = bench.choose()
    assert (choice.precision, choice.memory_format) == ("fp32", "contiguous")
    bench = Bench(dict(zip(CANDIDATES, (1.05, 1.0, 1.5, 1.4), strict=True)))
    assert bench.choose().memory_format == "channels_last"


def test_a_hopeless_candidate_is_not_measured_again():
    bench = Bench(dict(zip(CANDIDATES, (1.0, 0.9, 2.5, 2.4), strict=True)))
    bench.choose(rounds=5)
    assert [bench.calls.count(c) for c in CANDIDATES] == [6, 6, 3, 3]


def test_a_choice_is_remembered_for_its_key_only(encoder, tmp_path):
    key = precision_key(encoder.spec, batch_size=64, image_size=32)
    first = Bench(dict(zip(CANDIDATES, (1.0, 0.8, 0.9, 0.5), strict=True)))
    chosen = first.choose(cache=tmp_path, key=key)
    changed = Bench(dict(zip(CANDIDATES, (0.1, 0.8, 0.9, 0.5), strict=True)))
    again = changed.choose(cache=tmp_path, key=key)
    assert again.remembered and not chosen.remembered and changed.calls == []
    assert (again.precision, again.memory_format, again.seconds) == (
        chosen.precision,
        chosen.memory_format,
        chosen.seconds,
    )
    other = changed.choose(cache=tmp_path, key=key | {"batch_size": 1})
    assert not other.remembered and other.precision == "fp32"
    assert len(json.loads((tmp_path / "precision.json").read_text())) == 2


def test_a_broken_cache_or_a_candidate_no_longer_offered_costs_only_a_measurement(tmp_path):
    bench = Bench(dict(zip(CANDIDATES, (1.0, 0.8, 0.9, 0.5), strict=True)))
    (tmp_path / "precision.json").write_text("{")
    assert bench.choose(cache=tmp_path, key={"a": 1}).precision == "bf16"
    choice = bench.choose(cache=tmp_path, key={"a": 1}, candidates=CANDIDATES[:2])
    assert not choice.remembered and choice.precision == "fp32"
