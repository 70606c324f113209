import numpy as np
import pytest

from ssdistill.chain import benchmark_images
from ssdistill.chain.benchmark_images import DISTINCT, generated, with_generated_images
from ssdistill.experiment.reading import load_experiment


def experiment_on(data: str, tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text(f"schema: 1\nname: x\npretrain: {{kind: simclr, steps: 1}}\ndata: {data}\n")
    return load_experiment(path, [])[0]


def test_small_images_are_an_array_of_the_size_of_the_data(tmp_path):
    experiment = experiment_on("{kind: folder, path: nowhere, image_size: [24, 32]}", tmp_path)
    data = with_generated_images(experiment, 70, tmp_path).data
    assert (data.kind, data.image_size, data.test_fraction) == ("npy", (24, 32), 0)
    images = np.load(data.path)
    assert images.shape == (70, 24, 32, 3) and images.dtype == np.uint8
    assert (images[DISTINCT:] == images[: 70 - DISTINCT]).all()
    assert (images[1] != images[0]).any()


@pytest.mark.parametrize("channels", ["[3, 1]", "{red: 1, green: 3}"])
def test_chosen_channels_exist(channels, tmp_path):
    data = f"{{kind: npy, path: x.npy, image_size: 8, channels: {channels}}}"
    experiment = experiment_on(data, tmp_path)
    data = with_generated_images(experiment, 4, tmp_path).data
    assert np.load(data.path).shape == (4, 8, 8, 4) and data.channels == experiment.data.channels


def test_large_images_are_files_that_are_decoded(tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark_images, "DISTINCT", 2)
    experiment = experiment_on("{kind: folder, path: nowhere, image_size: 128}", tmp_path)
    data = with_generated_images(experiment, 3, tmp_path).data
    assert (data.kind, data.pixels, data.image_size) == ("folder", "original", 128)
    assert len(list((tmp_path / "images").iterdir())) == 3
    stored = experiment_on("{kind: folder, path: x, image_size: 128, pixels: stored}", tmp_path)
    assert with_generated_images(stored, 2, tmp_path).data.kind == "npy"


def test_generated_images_have_the_spectrum_of_photographs():
    images = generated(8, 32, 32).astype(float) / 255
    power = (
        np.abs(np.fft.rfft2(images - images.mean((1, 2), keepdims=True), axes=(1, 2))) ** 2
    ).mean((0, 3))
    # 1/f in amplitude: the power falls by 16 over two octaves.
    assert 8 < power[0, 2] / power[0, 8] < 32
