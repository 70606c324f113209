import json
import logging
import signal
import socket
import struct
import time

import numpy as np
import pytest

from ssdistill.errors import UserError
from ssdistill.record import tracker as tracker_room
from ssdistill.record.run import Run, load_run, read_metrics
from ssdistill.record.tracker import Tracker, TrackingSettings, wandb_id, wandb_mode

DIGEST = "0123456789abcdef" * 4
BLOCK = 32768


@pytest.fixture(autouse=True)
def no_key(monkeypatch, tmp_path):
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    for name in ("WANDB_CACHE_DIR", "WANDB_DATA_DIR", "WANDB_CONFIG_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))


@pytest.fixture(autouse=True)
def no_hang():
    """W&B talks to a process of its own: a lost answer must fail the test, not block it."""

    def give_up(*_):
        raise TimeoutError("W&B did not come back")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(120)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def open_run(folder):
    return Run(
        folder,
        stage="distill",
        kind="cosine",
        name="quickstart",
        digest=DIGEST,
        seed=3,
        config={"losses": {"cosine": {"weight": 2.0}}, "epochs": 4},
        fingerprint="f" * 64,
        parents={"teacher": {"sha256": "a" * 64}},
    )


def read_records(path):
    """Records of a .wandb file: LevelDB log framing around protobuf messages."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, offset, parts = path.read_bytes(), 7, b""
    assert data[:4] == b":W&B"
    while offset + 7 <= len(data):
        if BLOCK - offset % BLOCK < 7:
            offset += BLOCK - offset % BLOCK
            continue
        _, length, kind = struct.unpack_from("<IHB", data, offset)
        parts += data[offset + 7 : offset + 7 + length]
        offset += 7 + length
        if kind in (1, 4):  # full, or last part
            record = Record()
            record.ParseFromString(parts)
            yield record
            parts = b""


def offline_records(folder):
    """Records of every offline run below ``folder``, by file.

    W&B's own process may still be writing when ``finish`` returns: the exit record comes last.
    """
    whole = []
    for file in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
        while "exit" not in [r.WhichOneof("record_type") for r in read_records(file)]:
            time.sleep(0.02)
        whole.append(list(read_records(file)))
    return whole


def histories(records):
    return [
        {
            item.key or "/".join(item.nested_key): json.loads(item.value_json)
            for item in r.history.item
        }
        for r in records
        if r.WhichOneof("record_type") == "history"
    ]


def test_offline_file_holds_all_that_the_record_holds(tmp_path):
    run = open_run(tmp_path / "run")
    model = run.folder / "student"
    model.mkdir()
    (model / "model.safetensors").write_bytes(b"weights")
    with Tracker(run, TrackingSettings(wandb="offline"), tags=["digits", "resnet10t"]) as tracker:
        for step in range(600):
            tracker.log(
                step, {"loss/total": 1 / (step + 1), "collapse/std": 0.5}, epoch=step // 100
            )
        tracker.log_images(599, {"views": np.zeros((8, 8, 3), np.uint8)})
        tracker.log_model("student", model, "b" * 64, parent_sha256="a" * 64)
        tracker.finish({"probe/linear/top1": 91.5})

    (records,) = offline_records(run.folder)
    (header,) = [r.run for r in records if r.WhichOneof("record_type") == "run"]
    assert header.run_id == "01234567-distill-s3"
    assert header.run_group == "quickstart-01234567"
    assert header.job_type == "distill"
    assert header.display_name == "quickstart/distill/s3"
    assert list(header.tags) == ["digits", "resnet10t"]
    config = {item.key: json.loads(item.value_json) for item in header.config.update}
    assert config["losses"] == {"cosine": {"weight": 2.0}}
    assert config["run"]["digest"] == DIGEST
    assert config["run"]["parents"] == {"teacher": {"sha256": "a" * 64}}

    lines = [h for h in histories(records) if "loss/total" in h]
    assert [h["step"] for h in lines] == list(range(600))
    assert lines[9]["loss/total"] == pytest.approx(0.1)
    assert lines[250]["epoch"] == 2
    assert {"collapse/std", "loss/total"} <= set(lines[0])
    metrics = {r.metric.glob_name: r.metric.step_metric for r in records if r.HasField("metric")}
    assert metrics["*"] == "step"

    (artifact,) = [
        r.request.log_artifact.artifact if r.HasField("request") else r.artifact
        for r in records
        if r.HasField("artifact") or r.request.HasField("log_artifact")
    ]
    lineage = json.loads(artifact.metadata)
    assert artifact.type == "model"
    assert (lineage["sha256"], lineage["parent_sha256"]) == ("b" * 64, "a" * 64)
    assert lineage["digest"] == DIGEST
    summary = {}
    for r in records:
        if r.WhichOneof("record_type") == "summary":
            summary |= {item.key: json.loads(item.value_json) for item in r.summary.update}
    assert summary["probe/linear/top1"] == 91.5
    assert summary["status"] == "finished"


def test_resumed_run_keeps_its_id_and_mirrors_no_step_twice(tmp_path):
    run = open_run(tmp_path)
    with pytest.raises(KeyboardInterrupt), Tracker(run, TrackingSettings()) as tracker:
        for step in range(10):
            tracker.log(step, {"loss/total": float(step)})
        raise KeyboardInterrupt
    assert load_run(tmp_path).status == "interrupted"

    run = open_run(tmp_path)
    run.rewind(6)
    with Tracker(run, TrackingSettings()) as tracker:
        for step in range(6, 14):
            tracker.log(step, {"loss/total": float(step)})
    assert [line["step"] for line in read_metrics(tmp_path)] == list(range(14))

    records = [r for records in offline_records(tmp_path) for r in records]
    assert {r.run.run_id for r in records if r.HasField("run")} == {wandb_id(run.record)}
    steps = [h["step"] for h in histories(records) if "loss/total" in h]
    assert sorted(steps) == list(range(14))


def test_run_finishes_when_no_socket_may_be_opened(tmp_path, monkeypatch, caplog):
    def refuse(*_):
        raise OSError("blocked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket.socket, "connect_ex", refuse)
    with (
        caplog.at_level(logging.WARNING),
        Tracker(open_run(tmp_path), TrackingSettings()) as tracker,
    ):
        for step in range(3):
            tracker.log(step, {"loss/total": 1.0})
        tracker.finish({"probe/linear/top1": 90.0})
    assert load_run(tmp_path).status == "finished"
    assert len(read_metrics(tmp_path)) == 3
    said = [r for r in caplog.records if "wandb stopped mirroring" in r.getMessage()]
    assert len(said) <= 1


def test_offline_mirror_is_whole_without_the_network(tmp_path, monkeypatch):
    real, outside = socket.socket.connect, []

    def only_here(self, address):
        if self.family != socket.AF_UNIX and address[0] not in ("127.0.0.1", "::1"):
            outside.append(address)
            raise OSError("blocked")
        return real(self, address)

    monkeypatch.setattr(socket.socket, "connect", only_here)
    with Tracker(open_run(tmp_path), TrackingSettings()) as tracker:
        for step in range(3):
            tracker.log(step, {"loss/total": 1.0})
    (records,) = offline_records(tmp_path)
    assert [h["step"] for h in histories(records)] == [0, 1, 2]
    assert outside == []


def test_server_out_of_reach_means_offline_and_is_said_once(tmp_path, monkeypatch, caplog):
    class Unreachable(tracker_room.WandbMirror):
        def __init__(self, record, folder, settings, mode, tags=()):
            if mode == "online":
                raise TimeoutError("no route\nto host")
            super().__init__(record, folder, settings, mode, tags)

    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    monkeypatch.setattr(tracker_room, "WandbMirror", Unreachable)
    with (
        caplog.at_level(logging.WARNING),
        Tracker(open_run(tmp_path), TrackingSettings()) as tracker,
    ):
        tracker.log(0, {"loss/total": 1.0})
    (records,) = offline_records(tmp_path)
    assert [h["step"] for h in histories(records)] == [0]
    (said,) = [r.getMessage() for r in caplog.records if r.name == "ssdistill"]
    assert said == "wandb is not online (no route to host); mirroring offline"


def test_failing_mirror_is_said_once_and_training_goes_on(tmp_path, caplog):
    class Broken:
        name = "wandb"

        def log(self, *_):
            raise RuntimeError("the server\nis on fire")

    tracker = Tracker(open_run(tmp_path), TrackingSettings(wandb="disabled"))
    tracker.mirrors.append(Broken())
    with caplog.at_level(logging.WARNING):
        for step in range(5):
            tracker.log(step, {"loss/total": 1.0})
    assert len(read_metrics(tmp_path)) == 5
    (said,) = caplog.records
    assert "the server is on fire" in said.getMessage()


def test_mode_auto_is_offline_without_a_key_and_online_with_one(monkeypatch, tmp_path):
    assert wandb_mode(TrackingSettings()) == "offline"
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password secret\n")
    (tmp_path / "netrc").chmod(0o600)
    assert wandb_mode(TrackingSettings()) == "online"
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert wandb_mode(TrackingSettings()) == "disabled"


def test_online_without_a_key_is_an_error_that_says_what_to_do():
    with pytest.raises(UserError, match="wandb login"):
        wandb_mode(TrackingSettings(wandb="online"))


def test_disabled_makes_no_folder(tmp_path):
    with Tracker(open_run(tmp_path), TrackingSettings(wandb="disabled")) as tracker:
        tracker.log(0, {"loss/total": 1.0})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["metrics.jsonl", "run.json"]
