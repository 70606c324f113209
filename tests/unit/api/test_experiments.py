"""Distill, compress and pretrain from a program, with networks and images of its own."""

import json
import warnings

import numpy as np
import pytest
import torch
import yaml
from torch import nn

import ssdistill
from ssdistill.api.networks import encoder
from ssdistill.errors import UserError
from ssdistill.experiment.schema import Experiment

SIZE = 16
QUICK = {"device": {"threads": 1, "precision": "fp32", "memory_format": "contiguous"}}
IMAGES_NHWC = np.random.default_rng(0).integers(0, 256, (60, SIZE, SIZE, 3)).astype(np.uint8)


class Cells(nn.Module):
    def __init__(self, width: int = 16):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, width, 3, 2, 1), nn.BatchNorm2d(width), nn.ReLU())
        self.last = nn.Sequential(nn.Conv2d(width, 2 * width, 3, 2, 1), nn.ReLU())

    def forward(self, x_BCHW):
        return {"pooled": self.last(self.first(x_BCHW)).mean((2, 3))}


def pooled(output):
    return output["pooled"]


def cells(width: int = 16, **options):
    torch.manual_seed(width)
    return encoder(Cells(width), image_size=SIZE, embedding=pooled, **options)


def untouched(*_, **__):
    raise AssertionError("labels were read")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def distilled(root):
    student = encoder(
        lambda: Cells(16),
        image_size=SIZE,
        embedding=pooled,
        taps={"early": "first"},
        name="cells16",
    )
    losses = {"feature": "simreg", "queue": {"kind": "infonce", "weight": 0.2, "queue": 32}}
    return ssdistill.distill(
        student, cells(), IMAGES_NHWC, losses, steps=3, batch_size=10, root=root, config=QUICK
    )


def test_the_student_is_trained_and_opened(distilled):
    student = distilled.student
    assert student.embed_dim == 32 and student.spec.name == "cells16"
    seen = student(torch.from_numpy(IMAGES_NHWC[:4]).permute(0, 3, 1, 2) / 255)
    assert seen.embedding_BD.shape == (4, 32)
    assert distilled.metrics()["train/steps"] == 3
    assert list(distilled.models) == ["untrained", "teacher", "distilled"]
    untrained = distilled.load("untrained").state_dict()
    assert any(not torch.equal(v, untrained[k]) for k, v in student.state_dict().items())


def test_it_leaves_the_records_of_an_experiment(distilled, root):
    record = json.loads((distilled.folder.parent / "run.json").read_text())
    assert record["status"] == "finished" and record["stage"] == "distill"
    assert record["config"]["plugins"].keys() == {"__main__.cells16"}
    assert (distilled.report.folder / "report.html").is_file()
    assert distilled.metrics("teacher")["agree/cka"] == 1
    with pytest.raises(UserError, match=r"no model 'teahcer' .did you mean 'teacher'"):
        distilled.load("teahcer")


def test_its_config_is_that_of_a_file(distilled, root, tmp_path):
    tree = yaml.safe_load(distilled.config)
    assert tree["student"] == {"encoder": {"name": "cells16"}}
    assert tree["data"]["kind"] == "object" and tree["evaluate"] is None
    Experiment.model_validate(tree)
    (tmp_path / "same.yaml").write_text(distilled.config)
    for config in (tree, tmp_path / "same.yaml"):
        again = ssdistill.run(config, root=root)
        assert again.records == distilled.report.records


def test_a_second_call_does_nothing_again(distilled, root, monkeypatch):
    monkeypatch.setattr("ssdistill.chain.run.do", None)
    student = encoder(
        lambda: Cells(16),
        image_size=SIZE,
        embedding=pooled,
        taps={"early": "first"},
        name="cells16",
    )
    losses = {"feature": "simreg", "queue": {"kind": "infonce", "weight": 0.2, "queue": 32}}
    again = ssdistill.distill(
        student, cells(), IMAGES_NHWC, losses, steps=3, batch_size=10, root=root, config=QUICK
    )
    assert again.folder == distilled.folder


def test_it_shows_itself(distilled):
    assert "distilled" in repr(distilled) and str(distilled.folder) in repr(distilled)
    html = distilled._repr_html_()
    assert "<table>" in html and "<svg" in html and "distilled</td>" in html


def test_what_was_distilled_is_compressed(distilled, root):
    steps = ["prune", {"kind": "refit", "images": 30}]
    small = ssdistill.compress(distilled.student, IMAGES_NHWC, steps, root=root, config=QUICK)
    # Which comes last, to be used, is decided by how well each agrees.
    assert set(small.models) == {"teacher", "pruned", "refitted"}
    assert small.main in ("pruned", "refitted") and small.folder == small.models[small.main]
    before, after = (small.metrics(name)["compress/macs"] for name in ("teacher", "refitted"))
    assert after <= 0.5 * before
    x_BCHW = torch.rand(2, 3, SIZE, SIZE)
    assert small.model(x_BCHW).embedding_BD.shape == (2, 32)
    before = ssdistill.load(small.models["teacher"])
    assert torch.equal(before(x_BCHW).embedding_BD, distilled.student(x_BCHW).embedding_BD)


def test_a_module_starts_from_its_own_weights(root):
    module = cells(8)
    result = ssdistill.pretrain(
        module, IMAGES_NHWC, "byol", steps=1, batch_size=10, root=root, config=QUICK
    )
    weights = result.tree["teacher"]["encoder"]["weights"]
    start = ssdistill.load(weights)
    assert all(
        torch.equal(v, start.net.state_dict()[k]) for k, v in module.net.state_dict().items()
    )
    assert result.main == "byol" and result.metrics()["train/steps"] == 1


def test_two_modules_of_one_class_are_two_networks():
    narrow, wide = cells(4), cells(6)
    assert narrow.spec.name != wide.spec.name
    assert narrow.fresh_net().net.last[0].out_channels == 8
    assert wide.fresh_net().net.last[0].out_channels == 12
    assert cells(4).spec.name == narrow.spec.name


def test_labels_are_not_read(root, monkeypatch):
    labels_N = np.arange(60) % 3
    monkeypatch.setattr("ssdistill.data.array_rows.ArrayRows.labels", untouched)
    result = ssdistill.distill(
        cells(8), cells(), (IMAGES_NHWC, labels_N), steps=1, batch_size=10, root=root, config=QUICK
    )
    assert not any("top1" in name for name in result.metrics())


def test_evaluation_reads_them_where_it_is_asked_for(root):
    labels_N = np.arange(60) % 3
    data = ((IMAGES_NHWC[:40], labels_N[:40]), (IMAGES_NHWC[40:], labels_N[40:]))
    config = QUICK | {"evaluate": {"linear": {"folds": 2}, "knn": None, "low_shot": None}}
    result = ssdistill.distill(
        cells(8), cells(), data, steps=1, batch_size=10, root=root, config=config
    )
    assert 0 <= result.metrics()["probe/linear/top1"] <= 100


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"losses": "simregg"}, "distill.losses.simregg.kind: 'simregg' is unknown"),
        ({"steps": -1}, "distill.steps"),
        ({"stepps": 1}, "stepps"),
        ({"config": {"devise": {}}}, "devise"),
    ],
)
def test_wrong_arguments_are_named(root, arguments, said):
    options = {"losses": "simreg", "steps": 1, "root": root} | arguments
    with pytest.raises(UserError) as refused:
        ssdistill.distill(cells(8), cells(), IMAGES_NHWC, **options)
    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("teacher", "said"),
    [
        ("nowhere", "nowhere"),
        (__file__, "a checkpoint does not say its network"),
        (3, "expected a module, a name, a path or settings, got 3"),
    ],
)
def test_wrong_teachers_are_named(root, teacher, said):
    with pytest.raises(UserError) as refused:
        ssdistill.distill(cells(8), teacher, IMAGES_NHWC, steps=1, batch_size=10, root=root)
    assert said in str(refused.value) and "\n" not in str(refused.value)


class Endless:
    """A map-style dataset that never raises IndexError."""

    def __len__(self):
        return 6

    def __getitem__(self, i):
        return IMAGES_NHWC[i % len(IMAGES_NHWC)], "a label"


def test_a_dataset_is_embedded_in_its_order(tmp_path):
    model = cells()
    found, names = ssdistill.embed(model, Endless(), root=tmp_path, progress=False)
    expected, _ = ssdistill.embed(model, IMAGES_NHWC[:6], root=tmp_path, progress=False)
    assert np.allclose(found, expected, atol=1e-5) and len(names) == 6


def test_a_module_that_differs_in_an_attribute_is_another_network(tmp_path):
    class Pooling(Cells):
        how = "mean"

        def forward(self, x_BCHW):
            x_BCHW = self.last(self.first(x_BCHW))
            return x_BCHW.mean((2, 3)) if self.how == "mean" else x_BCHW.amax((2, 3))

    mean, largest = Pooling(), Pooling()
    largest.how = "max"
    largest.load_state_dict(mean.state_dict())
    encoders = [encoder(net, image_size=SIZE) for net in (mean, largest)]
    settings = {"root": tmp_path, "config": QUICK, "steps": 2, "batch_size": 20}
    run = ssdistill.distill(*encoders[::-1], IMAGES_NHWC, **settings)
    x_BCHW = torch.rand(2, 3, SIZE, SIZE)
    taught = run.load("teacher")(x_BCHW).embedding_BD
    assert torch.allclose(taught, encoders[0].eval()(x_BCHW).embedding_BD, atol=1e-5)


def test_results_do_not_depend_on_where_the_runs_are(tmp_path):
    runs = [
        ssdistill.distill(
            cells(12),
            cells(),
            IMAGES_NHWC,
            root=tmp_path / name,
            config=QUICK,
            steps=2,
            batch_size=20,
        )
        for name in "ab"
    ]
    one, two = (run.models["distilled"].parents[1].name for run in runs)
    assert one == two
    states = [run.student.state_dict() for run in runs]
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])


class Frozen(Cells):
    def __init__(self):
        super().__init__()
        self.requires_grad_(False)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"losses": None}, "losses: expected a kind such as 'simreg'"),
        ({"losses": ssdistill.losses}, "losses: expected a kind"),
        ({"losses": ["simreg", "simreg"]}, "one kind is listed twice"),
        ({"losses": [None]}, "losses: None is no kind"),
        ({"config": "x"}, "config: expected sections by name, got 'x'"),
        ({"name": 3}, "name=3: expected text"),
        ({"root": __file__}, "cannot be written"),
    ],
)
def test_arguments_of_another_type_are_refused_in_one_line(root, arguments, said):
    options = {"losses": "simreg", "steps": 1, "root": root} | arguments
    with pytest.raises(UserError, match=said) as refused:
        ssdistill.distill(cells(8), cells(), IMAGES_NHWC, **options)
    assert "\n" not in str(refused.value)


def test_steps_of_compression_are_kinds_or_settings(root):
    for steps, said in (([], "at least one is required"), ([None], "steps: None is no kind")):
        with pytest.raises(UserError, match=said):
            ssdistill.compress(cells(), IMAGES_NHWC, steps, root=root)


def test_a_student_without_weights_to_train_is_refused(root):
    student = encoder(Frozen, image_size=SIZE, embedding=pooled)
    with pytest.raises(UserError, match="none of its parameters can be trained"):
        ssdistill.distill(student, cells(), IMAGES_NHWC, steps=1, batch_size=20, root=root)


def test_a_name_is_that_of_one_network(root, caplog):
    first, second = (cells(width, name="named") for width in (8, 24))
    assert "another one of that name takes its place" in caplog.text
    with pytest.raises(UserError, match="two networks with name='named', and this is the older"):
        ssdistill.distill(first, cells(), IMAGES_NHWC, steps=1, root=root)
    with pytest.raises(UserError, match="cannot encode"):
        encoder(Cells(8).double(), image_size=SIZE, embedding=pooled, name="named")
    assert ssdistill.compress(second, IMAGES_NHWC, "quantize", root=root).model.embed_dim == 48


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"image_size": 0}, "image_size=0: write a whole number"),
        ({"image_size": "16"}, "image_size='16'"),
        ({"input_size": -16}, "input_size=-16"),
        ({"mean": 0.5, "std": 0.5}, "mean=0.5: write one finite number"),
        ({"mean": (0, 0, 0)}, "mean was passed without std"),
        ({"mean": (0, 0, 0), "std": (0, 0, 0)}, "must be positive"),
        ({"name": "../x"}, "name='../x': use letters"),
        ({"name": ""}, "name='': use letters"),
        ({"taps": ["first"]}, "pass names of inner modules by the names of taps"),
        ({"taps": {"": "first"}}, "pass names of inner modules"),
        ({"embedding": "pooled"}, "embedding='pooled': pass a function"),
        ({"embedding": lambda out: 1 / 0}, "cannot encode images of 16x16: division by zero"),
        ({"embedding": lambda out: out["pooled"].double()}, "be float32, not float64"),
        ({"embedding": lambda out: out["pooled"][:1]}, "one row for each image, not 1 for 2"),
        ({"embedding": lambda out: out["pooled"][:, :0]}, "be wider than 0"),
        ({"embedding": lambda out: out["pooled"] / 0}, "be finite"),
    ],
)
def test_arguments_of_an_encoder_are_refused_in_one_line(options, said):
    with pytest.raises(UserError, match=said) as refused:
        encoder(Cells(), **{"image_size": SIZE, "embedding": pooled, **options})
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("maker", [lambda: None, lambda: Cells])
def test_what_makes_no_module_is_refused(maker):
    with pytest.raises(UserError, match="return a module"):
        encoder(maker, image_size=SIZE)


def test_a_scripted_module_is_refused():
    class Plain(nn.Module):
        def forward(self, x):
            return x.mean((2, 3))

    with warnings.catch_warnings(action="ignore"):
        traced = torch.jit.trace(Plain(), torch.zeros(1, 3, 4, 4))
    with pytest.raises(UserError, match="pass the module that it was made of"):
        encoder(traced, image_size=SIZE)
