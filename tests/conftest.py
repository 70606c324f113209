"""Set up every test: one thread, no W&B, tiny networks and images."""

import functools
import gc
import os
from contextlib import suppress
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import settings
from smoke_files import SMOKE

from ssdistill.models.backbones import EncoderSettings, build_encoder
from ssdistill.models.networks import NETWORKS
from ssdistill.settings.adding import look_again
from ssdistill.settings.plugins import FOLDER, NAMED, PLUGINS


def pytest_collection_modifyitems(items):
    # Those that start processes take longest, and begin first: at the end no worker waits for one.
    items.sort(key=lambda item: "integration" not in item.path.parts)
    for item in items:
        if item.path.name in SMOKE:
            item.add_marker(pytest.mark.smoke)


def pytest_configure(config):
    # Workers share the cores, and so do the processes that some tests start.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)
    # How long an example takes says how busy the machine is.
    settings.register_profile("untimed", deadline=None)
    settings.load_profile("untimed")
    gc.disable()


def pytest_collection_finish():
    # Thousands of test items live until the end; every look through them is in vain.
    gc.collect()
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session", autouse=True)
def one_table_of_operators():
    """torch makes the same table of ONNX operators in every export, a third of its time."""
    with pytest.MonkeyPatch.context() as patch:
        with suppress(ImportError, AttributeError):  # it is torch's own affair
            from torch.onnx._internal.exporter._registration import ONNXRegistry

            made_once = functools.cache(ONNXRegistry.from_torchlib)
            patch.setattr(ONNXRegistry, "from_torchlib", staticmethod(made_once))
        yield


@pytest.fixture(scope="session", autouse=True)
def no_wandb():
    """No test talks to W&B unless it changes this for itself."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "disabled")
        yield


@pytest.fixture(scope="session", autouse=True)
def own_state(tmp_path_factory):
    """What tests compile is noted in a folder of their own, not in the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SSDISTILL_STATE", str(tmp_path_factory.mktemp("state")))
        yield


@pytest.fixture
def plugins():
    """A place for kinds and networks of a test, which no other test sees."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(NAMED, "")
        patch.setenv(FOLDER, "")
        kept = dict(PLUGINS), dict(NETWORKS)
        yield PLUGINS
        for known, before in zip((PLUGINS, NETWORKS), kept, strict=True):
            known.clear()
            known.update(before)
        look_again()


@pytest.fixture
def runs(tmp_path):
    """An empty runs folder."""
    folder = tmp_path / "runs"
    folder.mkdir()
    return folder


@pytest.fixture
def make_encoder():
    """``make_encoder(seed)``: a two-block ResNet for 16x16 images, 16-dimensional."""

    def make(seed=0):
        torch.manual_seed(seed)
        args = {
            "layers": (1, 1, 0, 0),
            "channels": (8, 16, 16, 16),
            "stem_type": "deep",
            "stem_width": 8,
        }
        return build_encoder(EncoderSettings(name="resnet10t", args=args, stem_stride=2), 16)

    return make


class ImageStore(SimpleNamespace):
    """As much of a store as training and planning look at."""

    channel_names = weights = None

    def __len__(self):
        return len(self.images)

    def displayed(self, images_NHWC):
        return images_NHWC


@pytest.fixture
def make_store():
    """``make_store(count)``: a store in memory, 16x16 noise over a ramp per image."""

    def make(count=24, fingerprint="f" * 64):
        noise = np.random.default_rng(0).integers(0, 128, (count, 16, 16, 3))
        ramp = np.linspace(0, 127, count).astype(int).reshape(-1, 1, 1, 1)
        return ImageStore(
            images=(noise + ramp).astype(np.uint8),
            fingerprint=fingerprint,
            mean=(0.5, 0.5, 0.5),
            std=(0.25, 0.25, 0.25),
            class_names=("a", "b"),
        )

    return make
