import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from ssdistill.data.sources.npz import Npz
from ssdistill.data.sources.torchvision_sets import Stl10
from ssdistill.data.store import open_store
from ssdistill.errors import UserError
from ssdistill.evaluate.probes.knn_probe import knn_probe
from ssdistill.evaluate.protocols import transfer
from ssdistill.evaluate.protocols.linear import linear_probe
from ssdistill.evaluate.protocols.transfer import Transfer, names
from ssdistill.evaluate.settings import EvaluateSettings
from ssdistill.evaluate.subject import LabeledImages, Subject
from ssdistill.label_free.features import extract
from ssdistill.models.backbones import EncoderSettings, build_encoder
from ssdistill.models.representation import Representation
from ssdistill.settings.registry import SOURCES


class Seen(nn.Module):
    """Mean colors of the quarters; remembers what it was shown."""

    def __init__(self):
        super().__init__()
        self.shapes, self.highest = set(), 0.0

    def forward(self, x_BCHW):
        self.shapes.add(tuple(x_BCHW.shape[1:]))
        self.highest = max(self.highest, x_BCHW.max().item())
        return Representation(nn.functional.adaptive_avg_pool2d(x_BCHW, 2).flatten(1))


def arrays(seed, side=12, classes=2, spread=60):
    rng = np.random.default_rng(seed)

    def split(count):
        labels = np.arange(count) % classes
        level = rng.normal(80 + 40 * labels[:, None, None, None], spread, (count, 2, 2, 3))
        images = level.repeat(side // 2, axis=1).repeat(side // 2, axis=2)
        return images.clip(0, 255).astype(np.uint8), labels

    return *split(60), *split(40)


def write(path, seed, **facts):
    train, train_labels, test, test_labels = arrays(seed, **facts)
    np.savez(path, train_images=train, train_labels=train_labels,
             test_images=test, test_labels=test_labels)  # fmt: skip
    return {"kind": "npz", "path": str(path)}


@pytest.fixture
def subject(tmp_path):
    def make(encoder=None, **facts):
        images = np.zeros((4, 8, 8, 3), np.uint8)
        own = LabeledImages(images, np.arange(4) % 2)
        return Subject(encoder or Seen(), own, own, folder=tmp_path, progress=False, **facts)

    return make


@pytest.mark.parametrize("protocol", ["linear", "knn"])
def test_each_data_set_gives_what_the_probe_gives_on_its_features(tmp_path, subject, protocol):
    one, two = write(tmp_path / "one.npz", 1), write(tmp_path / "two.npz", 2, classes=3)
    judged = subject()
    result = Transfer(datasets=(one, two), protocol=protocol).run(judged)
    expected = []
    for seed, classes in ((1, 2), (2, 3)):
        train, train_labels, test, test_labels = arrays(seed, classes=classes)
        z = [extract(judged.encoder, images, 8, progress=False) for images in (train, test)]
        probe = {"linear": linear_probe, "knn": knn_probe}[protocol]
        # The stores hold 8 x 8 pixels: each quarter is plain, so no filter can change its mean.
        expected.append(probe(z[0], train_labels, z[1], test_labels).top1)
    assert [result["one_top1"], result["two_top1"]] == pytest.approx(expected, abs=2.6)
    assert result["top1"] == pytest.approx((result["one_top1"] + result["two_top1"]) / 2)
    assert 30 < result["top1"] < 99
    assert result.details["two"]["classes"] == 3
    assert (result.details["one"]["train_images"], result.details["one"]["test_images"]) == (60, 40)
    assert set(result.metrics) == {
        *(f"probe/transfer/{name}_{m}" for name in ("one", "two") for m in ("top1", "top1_stderr")),
        "probe/transfer/top1",
    }


def test_pictures_come_at_the_encoders_size_in_0_to_1(tmp_path, subject):
    judged = subject(image_size=8)
    Transfer(datasets=(write(tmp_path / "one.npz", 1),)).run(judged)
    assert judged.encoder.shapes == {(3, 8, 8)}
    assert 0.9 < judged.encoder.highest <= 1.0


def test_the_encoder_keeps_its_own_normalization(tmp_path, subject, monkeypatch):
    settings = EncoderSettings(name="resnet10t", stem_stride=2, args={
        "layers": (1, 1, 0, 0), "channels": (8, 16, 16, 16), "stem_type": "deep", "stem_width": 8,
    })  # fmt: skip
    mean, std = (0.9, 0.1, 0.4), (0.05, 0.3, 0.2)
    torch.manual_seed(0)
    encoder = build_encoder(settings, 16, mean, std)
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    dataset = write(tmp_path / "one.npz", 1, side=16)
    given = []
    inner = encoder.net.forward_features
    monkeypatch.setattr(
        encoder.net, "forward_features", lambda x: [given.append(x.clone()), inner(x)][1]
    )
    Transfer(datasets=(dataset,)).run(subject(encoder, image_size=16))
    train, _, test, _ = arrays(1, side=16)
    pixels = torch.from_numpy(np.concatenate([train, test])).movedim(3, 1) / 255
    own = torch.tensor(mean)[:, None, None], torch.tensor(std)[:, None, None]
    assert len(torch.cat(given)) == 100
    torch.testing.assert_close(torch.cat(given), (pixels - own[0]) / own[1], atol=1e-5, rtol=1e-5)
    after = encoder.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_kind_alone_is_enough(subject):
    result = Transfer(datasets=("digits",)).run(subject(image_size=16))
    assert result["digits_top1"] > 40
    assert result.settings == {"datasets": ({"kind": "digits"},), "protocol": "linear"}


def test_names_are_readable_and_told_apart():
    schema = SOURCES.schema
    given = [
        schema("svhn")(),
        schema("npz")(path="/a/b/skin lesions-2.npz"),
        schema("folder")(path="/pictures/cats/"),
        schema("folder")(path="/other/cats"),
        schema("svhn")(root="/elsewhere"),
        schema("npz")(path="svhn.npz"),
        schema("folder")(path="/étés"),
        schema("folder")(path="/"),
    ]
    assert names(given) == [
        *("svhn", "skin_lesions_2", "cats", "cats_2", "svhn_2", "svhn_3", "t_s", "folder")
    ]


def test_stores_lie_beside_the_subjects_own(tmp_path, subject, monkeypatch):
    dataset = write(tmp_path / "one.npz", 1)
    Transfer(datasets=(dataset,)).run(subject())
    assert len(list((tmp_path / "data").glob("npz-*-8-*/store.json"))) == 2
    stores = [
        open_store(Npz(path=dataset["path"]), name, 8, tmp_path / "own")
        for name in ("train", "test")
    ]
    Transfer(datasets=("digits",)).run(Subject(Seen(), *stores, progress=False))
    assert len(list((tmp_path / "own").glob("digits-*-8-*/store.json"))) == 2
    monkeypatch.chdir(tmp_path)
    assert transfer.data_folder(Subject(Seen(), *[subject().train] * 2)).as_posix() == "runs/data"


def test_one_that_is_missing_is_named_before_anything_is_encoded(tmp_path, subject):
    judged = subject()
    gone = {"kind": "npz", "path": str(tmp_path / "gone.npz")}
    with pytest.raises(
        UserError, match=r"^transfer: data set 'gone': .*gone.npz: no such"
    ) as caught:
        Transfer(datasets=("digits", gone)).run(judged)
    assert "\n" not in str(caught.value)
    assert not judged.encoder.shapes


def test_one_without_labels_is_named(tmp_path, subject):
    (tmp_path / "flat").mkdir()
    for i in range(4):
        Image.new("RGB", (9, 9)).save(tmp_path / "flat" / f"{i}.png")
    flat = {"kind": "folder", "path": str(tmp_path / "flat")}
    with pytest.raises(UserError, match=r"^transfer: data set 'flat': .* has no labels"):
        Transfer(datasets=(flat,)).run(subject())
    stl = SOURCES.schema("stl10")(train_split="unlabeled")
    assert SOURCES.build(stl).kind == Stl10.kind
    with pytest.raises(UserError, match=r"^transfer: data set 'stl10': .* has no labels"):
        Transfer(datasets=(stl,)).run(subject())


def test_what_a_probe_refuses_is_said_of_its_data_set(tmp_path, subject):
    with pytest.raises(
        UserError, match=r"^transfer: data set 'same': training labels have a single"
    ):
        Transfer(datasets=(write(tmp_path / "same.npz", 1, classes=1),)).run(subject())


@pytest.mark.parametrize(
    ("datasets", "message"),
    [
        (("svhm",), r"'svhm' \(did you mean 'svhn'\?\)"),
        ((3,), "transfer.datasets: expected a kind, or a kind and its settings, got 3"),
        (({"kind": "npz"},), "transfer.datasets.path"),
        (({"kind": "svhn", "sise": 3},), "transfer.datasets.sise"),
    ],
)
def test_a_data_set_that_is_none_is_refused_at_once(datasets, message):
    with pytest.raises(UserError, match=message) as caught:
        Transfer(datasets=datasets)
    assert "\n" not in str(caught.value)


def test_a_config_asks_for_it():
    tree = {"transfer": {"datasets": ["svhn", {"kind": "npz", "path": "x.npz"}], "protocol": "knn"}}
    (built,) = [p for p in EvaluateSettings.model_validate(tree).protocols if p.kind == "transfer"]
    assert built.datasets == ({"kind": "svhn"}, {"kind": "npz", "path": "x.npz"})
    assert built.protocol == "knn"
    assert EvaluateSettings().transfer is None
    for wrong in ({"datasets": []}, {"datasets": ["svhm"]}, {}):
        with pytest.raises(ValueError, match="datasets"):
            EvaluateSettings.model_validate({"transfer": wrong})
