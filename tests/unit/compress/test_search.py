import copy
import json

import pytest
import torch
from torch import nn

import ssdistill.compress.searching.damages as damages_module
import ssdistill.compress.searching.measured_budget as measured_budget
from ssdistill.artifacts.artifact import load_encoder, save_encoder
from ssdistill.compress import Context
from ssdistill.compress.codes.fake_quant import weights_of
from ssdistill.compress.search import Search
from ssdistill.compress.searching.measured_budget import file_size
from ssdistill.errors import UserError
from ssdistill.measure.macs import count_macs
from ssdistill.measure.parameters import count_parameters
from ssdistill.measure.pareto import Front, FrontPoint, load_front
from ssdistill.models.wrapped import Wrapped
from ssdistill.report.charts.pareto import front_svg
from ssdistill.settings.registry import STEPS


def images(n, seed=0):
    """Smooth random images: coarse noise, enlarged."""
    coarse_BCHW = torch.rand(n, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    return nn.functional.interpolate(coarse_BCHW, 16, mode="bilinear")


def vectors(n, seed=0):
    return torch.randn(n, 48, generator=torch.Generator().manual_seed(seed))


class Uneven(nn.Module):
    """Residual branches of which the first matters most and the last hardly at all."""

    def __init__(self):
        super().__init__()
        self.branches = nn.ModuleList(nn.Linear(48, 48) for _ in range(5))

    def forward(self, x):
        for number, branch in enumerate(self.branches):
            x = x + torch.tanh(branch(x)) * 3.0 * 0.3**number
        return x


@pytest.fixture
def uneven():
    torch.manual_seed(0)
    return Wrapped(Uneven(), vectors(4), name="uneven").eval()


@pytest.fixture
def encoder(make_encoder):
    encoder = make_encoder().train()
    for norm in encoder.net.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.uniform_(norm.weight, 0.5, 1.5)  # branches begin at zero otherwise
    with torch.no_grad():
        for seed in range(10):
            encoder(images(64, seed))
    return encoder.eval()


def search(model, folder, inputs=images, **settings):
    context = Context(inputs, folder, scratch=folder)
    return Search(**({"images": 64} | settings)).apply(model, context), context.record


def test_the_registry_finds_the_step_and_its_settings():
    settings = STEPS.schema("search")(macs=0.5, actions=["width", "rank"])
    step = STEPS.build(settings)
    assert isinstance(step, Search) and step.budget == "macs" and step.actions == ("width", "rank")
    assert Search.row(settings) == "searched_macs_50"
    assert Search(bytes=0.1).actions == ("bits",) and Search(latency=0.5).actions == ("width",)


def test_a_searched_plan_is_better_than_a_uniform_one_of_as_many_bytes(uneven, tmp_path):
    _, record = search(
        uneven, tmp_path, vectors, bytes=0.25, images=64, front=7, bias_correction=False
    )
    front = load_front(tmp_path / "front.json")
    compared = [p for p in front.points if p.uniform_measured is not None]
    compared = [p for p in compared if len(set(p.plan.values())) > 1 and p.uniform_measured > 1e-5]
    assert len(compared) >= 2
    for point in compared:
        assert point.measured < 0.7 * point.uniform_measured
        assert point.cost <= point.uniform_cost
    assert record["damage"] == record["measured_damage"] == front.points[0].measured


def test_damages_add_up(uneven, tmp_path):
    search(uneven, tmp_path, vectors, bytes=0.25, images=128)
    points = load_front(tmp_path / "front.json").points
    for point in points:
        if point.measured < 0.1:
            assert point.predicted == pytest.approx(point.measured, rel=0.4, abs=1e-4)


def test_the_budget_is_met_by_the_file_and_the_given_model_stays(encoder, tmp_path):
    before = copy.deepcopy(encoder.state_dict())
    whole = file_size(encoder)
    made, record = search(encoder, tmp_path, bytes=0.3, front=0)
    assert all(torch.equal(tensor, before[key]) for key, tensor in encoder.state_dict().items())
    assert file_size(made) <= 0.3 * whole and record["share"] <= 0.3
    assert record["share"] > 0.25 and "storage" in record
    folder = tmp_path / "saved"
    save_encoder(made, folder)
    assert (folder / "model.coded.safetensors").stat().st_size <= 0.3 * whole + 500
    again = load_encoder(folder)
    assert torch.equal(again(images(4)).embedding_BD, made(images(4)).embedding_BD)
    assert {code.bits for code in made.coded.values()} <= set(range(2, 9))


@pytest.mark.parametrize("budget", ["macs", "parameters"])
def test_widths_and_ranks_meet_a_budget_of_computation(encoder, tmp_path, budget):
    made, record = search(
        encoder,
        tmp_path,
        **{budget: 0.75},
        actions=("width", "rank"),
        round_to=4,
        images=16,
        front=1,
    )
    count = count_macs if budget == "macs" else count_parameters
    assert count(made) <= 0.75 * count(encoder)
    assert record["share"] == pytest.approx(count(made) / count(encoder))
    assert made(images(2)).embedding_BD.shape == encoder(images(2)).embedding_BD.shape
    save_encoder(made, tmp_path / "saved")
    again = load_encoder(tmp_path / "saved")
    assert torch.allclose(again(images(4)).embedding_BD, made(images(4)).embedding_BD, atol=1e-5)


def test_channels_and_bits_together_meet_a_budget_of_bytes(encoder, tmp_path):
    made, record = search(
        encoder, tmp_path, bytes=0.27, actions=("width", "bits"), round_to=4, images=16, front=1
    )
    assert file_size(made) <= 0.27 * file_size(encoder)
    kinds = {name.split()[0] for name in load_front(tmp_path / "front.json").points[0].plan}
    assert "bits" in kinds and "storage" not in record
    for key, code in made.coded.items():
        assert torch.equal(made.net.state_dict()[key], code.decode())


def test_latency_is_met_as_measured(encoder, tmp_path, monkeypatch):
    class Timed:
        calls = 0

        def __call__(self, model):
            Timed.calls += 1
            return 0.4 + 0.6 * count_macs(model) / count_macs(encoder)  # an overhead of 40 %

    def relative_cost(budget, model):
        assert budget == "latency"
        return measured_budget.contextmanager(lambda: (yield Timed()))()

    monkeypatch.setattr(measured_budget, "relative_cost", relative_cost)
    made, record = search(encoder, tmp_path, latency=0.85, round_to=2, images=16, front=0)
    assert Timed.calls > 1
    assert record["share"] == Timed()(made) <= 0.85
    assert record["share"] > 0.75


def test_a_second_run_measures_nothing_again_and_comes_to_the_same(encoder, tmp_path, monkeypatch):
    calls = []
    alone = damages_module.Actions.alone
    monkeypatch.setattr(
        damages_module.Actions, "alone", lambda *args: calls.append(1) or alone(*args)
    )
    budget = {"bytes": 0.3, "images": 16, "front": 0}
    first, record = search(encoder, tmp_path, **budget)
    assert len(calls) == record["evaluated"] == 7 * len(weights_of(encoder.net))
    path, calls[:] = tmp_path / "damages.jsonl", []
    second, again = search(encoder, tmp_path, **budget)
    assert not calls and again["evaluated"] == 0 and again["reused"] == record["evaluated"]
    assert all(torch.equal(t, first.state_dict()[k]) for k, t in second.state_dict().items())
    # A kill in the middle of a line costs that line.
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:-3]) + lines[-3][:20])
    third, _ = search(encoder, tmp_path, **budget)
    assert len(calls) == 3
    assert all(torch.equal(t, first.state_dict()[k]) for k, t in third.state_dict().items())


@pytest.mark.parametrize("change", ["model", "images", "measure"])
def test_damages_of_something_else_are_not_read(encoder, tmp_path, change):
    settings = {"bytes": 0.6, "images": 16, "front": 0, "layers": ("layer2.*",)}
    search(encoder, tmp_path, **settings)
    if change == "model":
        encoder.net.layer1[0].conv1.weight.data[0, 0, 0, 0] += 0.1
    else:
        settings |= {"seed": 1} if change == "images" else {"damage": "cka"}
    _, record = search(encoder, tmp_path, **settings)
    assert record["reused"] == 0 and record["evaluated"] > 0


def test_only_the_layers_that_are_named_change(encoder, tmp_path):
    made, _ = search(encoder, tmp_path, bytes=0.7, layers=("layer2.*",), front=0)
    assert made.coded and all(key.startswith("layer2.") for key in made.coded)


def test_what_is_measured_decides_not_what_was_estimated(encoder, tmp_path, monkeypatch):
    true_size = measured_budget.file_size
    monkeypatch.setattr(
        measured_budget, "file_size", lambda m: true_size(m) * (1.1 if m.coded else 1)
    )
    made, record = search(encoder, tmp_path, bytes=0.3, front=0)
    assert 1.1 * true_size(made) <= 0.3 * true_size(encoder)
    assert record["share"] <= 0.3


def test_mistakes_are_named_in_one_line(encoder, tmp_path):
    def message(model=encoder, **settings):
        with pytest.raises(UserError) as caught:
            search(model, tmp_path, **({"images": 16} | settings))
        assert "\n" not in str(caught.value)
        return str(caught.value)

    one = "search: set exactly one of bytes, macs, parameters and latency"
    assert message() == f"{one} (none is set)"
    assert message(bytes=0.5, macs=0.5) == f"{one} (bytes=0.5 and macs=0.5 are set)"
    assert "actions=[bits] reduces only bytes" in message(macs=0.5, actions=("bits",))
    assert "no layer that can change matches 'layer9.*'" in message(bytes=0.5, layers=("layer9.*",))
    assert "bytes=0.01 cannot be reached for 'resnet10t'" in message(bytes=0.01)
    assert "leave 0." in message(macs=0.05, round_to=2)
    broken = copy.deepcopy(encoder)
    broken.net.layer1[0].conv1.weight.data[0, 0, 0, 0] = float("inf")
    assert "search: tensor" in message(broken, bytes=0.5)
    bare = Wrapped(nn.BatchNorm1d(48), vectors(4), name="bare")
    with pytest.raises(UserError, match="'bare' has no layer whose bits"):
        search(bare, tmp_path, vectors, bytes=0.5)


def points():
    return (
        FrontPoint(0.5, 500.0, 0.01, 0.02, 450.0, 0.08, {"bits a": 4}),
        FrontPoint(0.25, 250.0, 0.1, 0.0, None, None, {"bits a": 2}),
        FrontPoint(0.125, 125.0, 0.3, 0.4, 125.0, 0.4),
    )


def test_a_front_comes_back_from_its_file_and_knows_what_nothing_beats(tmp_path):
    front = Front("net", "bytes", 1000.0, "cosine", points())
    front.save(tmp_path / "front.json")
    assert load_front(tmp_path / "front.json") == front
    assert [p.cost for p in front.pareto] == [125.0, 250.0]
    (tmp_path / "other.json").write_text(json.dumps({"points": [{"share": 1}]}))
    with pytest.raises(UserError, match=r"other\.json is not a Pareto front written by search"):
        load_front(tmp_path / "other.json")
    with pytest.raises(UserError, match="no such file or folder; name the folder of a search step"):
        load_front(tmp_path / "none.json")


def test_the_chart_shows_both_lines_and_says_them_in_words():
    drawn = front_svg(Front("a<b", "bytes", 1000.0, "cka", points()))
    assert drawn.startswith("<svg") and "a&lt;b" in drawn and "1 − CKA" in drawn
    assert drawn.count("<circle") == 5 and "0.08 at 450 B" in drawn.replace("bytes", "B")
    assert "NaN" not in drawn and "inf" not in drawn
    assert front_svg(Front("a", "macs", 1.0, "cosine")) == ""
    alone = front_svg(Front("a", "macs", 1e6, "cosine", (FrontPoint(0.5, 5e5, 0.0, 0.0),)))
    assert alone.count("<circle") == 1 and "uniform" not in alone


def test_a_damaged_line_of_damages_is_measured_again(tmp_path):
    whole = {"kind": "bits", "layer": "a", "level": 4, "damage": 0.1, "bytes": 7, "of": "d"}
    lines = [b"{}", b"[1]", b"\xff\x00", b"[" * 100_000, b'{"of": "d"}', json.dumps(whole).encode()]
    (tmp_path / "damages.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    assert list(damages_module._read(tmp_path / "damages.jsonl", "d")) == [whole]
    assert list(damages_module._read(tmp_path / "damages.jsonl", "other")) == []
