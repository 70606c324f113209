"""A runs folder in S3, which a server on this machine plays."""

import fsspec
import numpy as np
import pytest
from moto.server import ThreadedMotoServer

from ssdistill.chain.remote_runs import CACHE
from ssdistill.chain.run import run
from ssdistill.errors import UserError
from ssdistill.experiment.reading import load_experiment
from ssdistill.train.progress import console

CONFIG = """
schema: 1
name: remote
data: {kind: npz, path: DATA}
teacher: {encoder: {name: resnet10t, stem: small, stem_stride: 2,
  args: {layers: [1, 1, 0, 0], channels: [8, 8, 8, 8], stem_type: deep, stem_width: 8}}}
pretrain: {kind: simclr, steps: 2, batch_size: 8}
evaluate: {label_free_images: 30, linear: {folds: 2}}
device: {precision: fp32, memory_format: contiguous, accelerator: cpu}
tracking: {wandb: disabled}
"""


@pytest.fixture
def bucket(monkeypatch):
    for name, value in {
        "AWS_ACCESS_KEY_ID": "none",
        "AWS_SECRET_ACCESS_KEY": "none",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    system = fsspec.filesystem("s3")
    system.mkdir("runs")
    yield system
    server.stop()


def test_what_one_machine_has_done_another_finds(bucket, tmp_path, monkeypatch):
    random = np.random.default_rng(0)
    images_NHWC = random.integers(0, 256, (60, 16, 16, 3), dtype=np.uint8)
    sets = {f"{s}_images": images_NHWC for s in ("train", "test")}
    np.savez(
        tmp_path / "data.npz", **sets, train_labels=np.arange(60) % 3, test_labels=np.arange(60) % 3
    )
    (tmp_path / "remote.yaml").write_text(CONFIG.replace("DATA", str(tmp_path / "data.npz")))
    experiment, _ = load_experiment(tmp_path / "remote.yaml")
    monkeypatch.setenv(CACHE, str(tmp_path / "first"))
    first = run(experiment, "s3://runs/some/place")
    monkeypatch.setenv(CACHE, str(tmp_path / "second"))
    with console.capture() as said:
        second = run(experiment, "s3://runs/some/place/")
    assert said.get().count(": cached") == 4
    assert second.records == first.records and second.folder != first.folder
    bucket.invalidate_cache()
    keys = set(bucket.find("runs"))
    assert f"runs/some/place/{first.folder.name}/report.html" in keys
    assert sum(key.endswith("/run.json") for key in keys) == 5
    with pytest.raises(UserError, match="--runs s3://nowhere/x: ") as failed:
        run(experiment, "s3://nowhere/x")
    assert "\n" not in str(failed.value)
