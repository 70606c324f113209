import gc

import numpy as np
import pytest
import torch
from color_encoders import color_subject, colored, state_of
from torch import nn

from ssdistill.errors import UserError
from ssdistill.evaluate.protocols.linear import Linear
from ssdistill.evaluate.protocols.low_shot import LowShot
from ssdistill.evaluate.subject import LabeledImages, Subject
from ssdistill.models.representation import Representation


class Normalized(nn.Module):
    """Has what could change: batch statistics, dropout, gradients; counts its images."""

    def __init__(self):
        super().__init__()
        self.norm, self.drop = nn.BatchNorm2d(3), nn.Dropout(0.5)
        self.seen = 0

    def forward(self, x_BCHW):
        self.seen += len(x_BCHW)
        return Representation(self.drop(self.norm(x_BCHW)).mean((2, 3)))


@pytest.mark.parametrize("training", [True, False])
def test_judging_leaves_the_encoder_as_it_was(training):
    encoder = Normalized().train(training)
    encoder.drop.eval()
    before = state_of(encoder)
    subject = color_subject(encoder=encoder)
    Linear(strengths=(1e-2, 1e-3)).run(subject)
    LowShot(draws=2).run(subject)
    assert state_of(encoder) == before
    encoder.train()(torch.rand(4, 3, 8, 8))
    assert state_of(encoder) != before, "changed batch statistics would not have been seen"


@pytest.mark.parametrize("memory", [2**30, 0])
def test_a_split_is_encoded_once(memory):
    encoder = Normalized()
    subject = color_subject(encoder=encoder, memory=memory)
    subject.features("test")
    assert encoder.seen == 60
    Linear(strengths=(1e-2, 1e-3)).run(subject)
    LowShot(draws=2).run(subject)
    assert encoder.seen == 60 + 120
    assert subject.features("train") is subject.features("train")


def test_features_beyond_the_memory_are_in_a_file(tmp_path):
    held = color_subject(memory=4 * 120 * 3, folder=tmp_path / "held")
    mapped = color_subject(memory=4 * 120 * 3 - 1, folder=tmp_path / "mapped")
    train_ND = mapped.features("train")
    assert torch.equal(train_ND, held.features("train"))
    mapped.features("test")
    assert not (tmp_path / "held").exists()
    # The smaller test split fits.
    assert [file.name for file in (tmp_path / "mapped").iterdir()] == ["train_features.npy"]
    on_disk = np.load(tmp_path / "mapped" / "train_features.npy")
    np.testing.assert_array_equal(on_disk, train_ND)
    train_ND[0] = 7
    np.testing.assert_array_equal(np.load(tmp_path / "mapped" / "train_features.npy"), on_disk)


def test_mapped_features_are_judged_like_held_ones():
    mapped, held = (Linear().run(color_subject(40, memory=memory)) for memory in (0, 2**30))
    assert mapped.metrics == held.metrics
    assert torch.equal(mapped.arrays["weight_KD"], held.arrays["weight_KD"])


def test_two_subjects_may_share_a_folder(tmp_path):
    first = color_subject(memory=0, folder=tmp_path)
    before_ND = first.features("train").clone()
    second = color_subject(50, n_train=7, memory=0, folder=tmp_path)
    assert second.features("train").shape == (7, 3)
    assert torch.equal(first.features("train"), before_ND)


def test_a_temporary_folder_goes_with_the_subject():
    subject = color_subject(memory=0)
    train_ND = subject.features("train")
    folder = subject._scratch
    assert (folder / "train_features.npy").exists()
    assert subject.folder is None
    expected_ND = train_ND.clone()
    del subject
    gc.collect()
    assert not folder.exists()
    assert torch.equal(train_ND, expected_ND)


def test_a_failed_encoding_leaves_no_file(tmp_path):
    class Fails(Normalized):
        def forward(self, x_BCHW):
            if self.seen:
                raise RuntimeError("broken")
            return super().forward(x_BCHW)

    subject = color_subject(encoder=Fails(), memory=0, folder=tmp_path, batch_size=50)
    with pytest.raises(RuntimeError, match="broken"):
        subject.features("train")
    assert list(tmp_path.iterdir()) == []


def test_missing_labels_are_said_before_anything_is_encoded():
    encoder, train = Normalized(), colored(12, 8, 0)
    subject = Subject(encoder, train, LabeledImages(train.images, None), progress=False)
    with pytest.raises(UserError, match="test labels are missing"):
        subject.probe_data()
    assert encoder.seen == 0


def test_details_tell_the_choice_and_warn_of_its_end():
    # More dimensions than images: the stronger of two weak penalties is the better one.
    rng = np.random.default_rng(0)

    def split(count):
        labels = np.arange(count) % 2
        images = rng.integers(0, 256, (count, 8, 8, 3))
        images[..., 0] = (images[..., 0] + 12 * labels[:, None, None]).clip(0, 255)
        return LabeledImages(images.astype(np.uint8), labels)

    def pixels(x_BCHW):
        return Representation(x_BCHW.flatten(1))

    subject = Subject(pixels, split(300), split(100), progress=False)
    details = Linear(strengths=(1e-1, 1e-7), holdout=0.5).run(subject).details
    assert set(details) >= {"strength", "held_out_loss", "held_out_top1", "gradient"}
    assert details["held_out_loss"][details["strength"]] == min(details["held_out_loss"].values())
    top1_by_strength = list(details["held_out_top1"].values())
    assert ("warning" in details) == (top1_by_strength[0] != top1_by_strength[1])
    assert "widen evaluate.linear.strengths" in details["warning"]
    assert "warning" not in Linear(strengths=(1e-1,)).run(subject).details
