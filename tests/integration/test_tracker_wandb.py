import json
import logging
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from ssdistill.errors import UserError
from ssdistill.record import tracker as tracker_room
from ssdistill.record.run import Run, load_run, read_metrics
from ssdistill.record.session import session
from ssdistill.record.tracker import Tracker, TrackingSettings, wandb_id, wandb_mode

DIGEST = "0123456789abcdef" * 4
BLOCK = 32768


@pytest.fixture(autouse=True)
def no_key(monkeypatch, tmp_path):
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        if name != "WANDB_SERVICE":
            monkeypatch.delenv(name)
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
    import wandb

    root = Path(os.environ.get("WANDB_DIR", folder))
    if not hasattr(wandb.Settings, "x_sync_dir_suffix") and list(root.rglob("offline-run-*")):
        # Older versions name a folder by the second alone; no user resumes that fast.
        time.sleep(1)
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
    if not data:  # not begun yet
        return
    assert data[:4] == b":W&B"
    while offset + 7 <= len(data):
        if BLOCK - offset % BLOCK < 7:
            offset += BLOCK - offset % BLOCK
            continue
        _, length, kind = struct.unpack_from("<IHB", data, offset)
        if offset + 7 + length > len(data):  # still being written
            return
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
    assert header.display_name == "distill/cosine/s3"
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
    said = [r for r in caplog.records if "wandb logging failed" in r.getMessage()]
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
    class Unreachable(tracker_room.WandbLogger):
        def __init__(self, record, folder, settings, mode, tags=()):
            if mode == "online":
                raise TimeoutError("no route\nto host")
            super().__init__(record, folder, settings, mode, tags)

    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    monkeypatch.setattr(tracker_room, "WandbLogger", Unreachable)
    with (
        caplog.at_level(logging.WARNING),
        Tracker(open_run(tmp_path), TrackingSettings()) as tracker,
    ):
        tracker.log(0, {"loss/total": 1.0})
    (records,) = offline_records(tmp_path)
    assert [h["step"] for h in histories(records)] == [0]
    (said,) = [r.getMessage() for r in caplog.records if r.name == "ssdistill"]
    assert said == "wandb is not reachable (no route to host); logging offline"


def test_failing_mirror_is_said_once_and_training_goes_on(tmp_path, caplog):
    class Broken:
        name = "wandb"

        def log(self, *_):
            raise RuntimeError("the server\nis on fire")

    tracker = Tracker(open_run(tmp_path), TrackingSettings(wandb="disabled"))
    tracker.loggers.append(Broken())
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


VARIABLES = {
    "WANDB_PROJECT": "thesis",
    "WANDB_ENTITY": "lab",
    "WANDB_NAME": "first try",
    "WANDB_RUN_GROUP": "chapter 3",
    "WANDB_TAGS": "gpu, long ,",
    "WANDB_JOB_TYPE": "night",
    "WANDB_NOTES": "with the new loss",
}


def header_of(records):
    return next(r.run for r in records if r.WhichOneof("record_type") == "run")


def test_the_environment_is_followed_where_the_config_is_silent(tmp_path, monkeypatch):
    for name, value in VARIABLES.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path / "scratch"))
    with Tracker(open_run(tmp_path / "run"), TrackingSettings(), tags=["digits"]) as tracker:
        tracker.log(0, {"loss/total": 1.0})
    assert not (tmp_path / "run" / "wandb").exists()
    (records,) = offline_records(tmp_path / "scratch")
    header = header_of(records)
    assert (header.project, header.entity) == ("thesis", "lab")
    assert (header.display_name, header.run_group) == ("first try", "chapter 3")
    assert (header.job_type, header.notes) == ("night", "with the new loss")
    assert list(header.tags) == ["gpu", "long", "digits"]


def test_what_the_config_says_wins_over_the_environment(tmp_path, monkeypatch):
    for name, value in VARIABLES.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    settings = TrackingSettings(wandb="offline", project="mine", entity="me")
    with Tracker(open_run(tmp_path), settings) as tracker:
        tracker.log(0, {"loss/total": 1.0})
    (records,) = offline_records(tmp_path)
    header = header_of(records)
    assert (header.project, header.entity) == ("mine", "me")


def test_without_variables_or_with_empty_ones_names_are_ours(tmp_path, monkeypatch):
    for name in VARIABLES:
        monkeypatch.setenv(name, "")
    with Tracker(open_run(tmp_path), TrackingSettings()) as tracker:
        tracker.log(0, {"loss/total": 1.0})
    (records,) = offline_records(tmp_path)
    header = header_of(records)
    assert (header.project, header.display_name) == ("ssdistill", "distill/cosine/s3")
    assert (header.run_group, header.job_type) == ("quickstart-01234567", "distill")


@pytest.mark.parametrize(
    "variables, mode",
    [
        ({"WANDB_MODE": "offline"}, "offline"),
        ({"WANDB_MODE": "dryrun"}, "offline"),
        ({"WANDB_MODE": "Disabled"}, "disabled"),
        ({"WANDB_MODE": "online", "WANDB_API_KEY": "a" * 40}, "online"),
        ({"WANDB_MODE": "run", "WANDB_API_KEY": "a" * 40}, "online"),
        ({"WANDB_MODE": "offline", "WANDB_API_KEY": "a" * 40}, "offline"),
        ({"WANDB_MODE": "", "WANDB_API_KEY": "a" * 40}, "online"),
        ({"WANDB_DISABLED": "true"}, "disabled"),
        ({"WANDB_DISABLED": "false"}, "offline"),
        ({"WANDB_DISABLED": "true", "WANDB_MODE": "offline"}, "offline"),
    ],
)
def test_the_mode_is_that_of_the_environment(monkeypatch, variables, mode):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert wandb_mode(TrackingSettings()) == mode


@pytest.mark.parametrize(
    "value, message", [("online", r"WANDB_MODE=online.*wandb login"), ("ofline", "'offline'")]
)
def test_a_mode_that_cannot_be_followed_is_an_error(monkeypatch, value, message):
    monkeypatch.setenv("WANDB_MODE", value)
    with pytest.raises(UserError, match=message):
        wandb_mode(TrackingSettings())


def steps_of(records):
    return [h["step"] for h in histories(records) if "loss/total" in h]


@pytest.mark.parametrize("checkpoint", [0, 6, 10], ids=lambda step: f"back to {step}")
def test_the_newest_folder_of_a_resumed_run_holds_all_of_it(tmp_path, checkpoint):
    run = open_run(tmp_path)
    with pytest.raises(KeyboardInterrupt), Tracker(run, TrackingSettings()) as tracker:
        for step in range(10):
            tracker.log(step, {"loss/total": float(step), "grad/norm": float("nan")}, epoch=step)
        raise KeyboardInterrupt
    run = open_run(tmp_path)
    with Tracker(run, TrackingSettings()) as tracker:
        run.rewind(checkpoint)
        for step in range(checkpoint, 14):
            tracker.log(step, {"loss/total": float(step)}, epoch=step)
    (records,) = offline_records(tmp_path)
    lines = histories(records)
    assert steps_of(records) == list(range(14))
    assert [h["loss/total"] for h in lines] == [h["epoch"] for h in lines] == list(range(14))
    (older,) = (tmp_path / "wandb" / "superseded").iterdir()
    assert older.name.startswith("offline-run-")
    assert list(older.glob("*.wandb"))


def test_wandb_syncs_the_newest_folder_alone(tmp_path):
    for _ in range(2):
        run = open_run(tmp_path)
        with Tracker(run, TrackingSettings()) as tracker:
            run.rewind(0)
            tracker.log(0, {"loss/total": 0.0})
    command = [sys.executable, "-m", "wandb", "sync", "--dry-run", str(tmp_path / "wandb")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if "No such option" in done.stderr:
        pytest.skip("this version of wandb has no sync --dry-run")
    assert done.returncode == 0 and "Would sync 1 run(s)" in done.stdout + done.stderr


def test_a_run_that_resumes_with_nothing_left_to_log_is_whole(tmp_path):
    run = open_run(tmp_path)
    with pytest.raises(KeyboardInterrupt), Tracker(run, TrackingSettings()) as tracker:
        tracker.log(0, {"loss/total": 0.0})
        raise KeyboardInterrupt
    with Tracker(open_run(tmp_path), TrackingSettings()) as tracker:
        tracker.finish({"probe/linear/top1": 90.0})
    (records,) = offline_records(tmp_path)
    assert steps_of(records) == [0]


def test_a_run_that_was_killed_loses_no_step(tmp_path):
    code = (
        "import os, sys; sys.path.insert(0, 'tests/integration')\n"
        "from pathlib import Path\n"
        "from test_tracker_wandb import *\n"
        "tracker = Tracker(open_run(Path(sys.argv[1])), TrackingSettings(wandb='offline'))\n"
        "for step in range(10): tracker.log(step, {'loss/total': float(step)})\n"
        "os.kill(os.getpid(), 9)"
    )
    # Not the service of this process, which would outlive the killed one.
    environ = {name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"}
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, env=environ, check=False)
    assert done.returncode == -9
    run = open_run(tmp_path)
    with Tracker(run, TrackingSettings()) as tracker:
        run.rewind(6)
        for step in range(6, 14):
            tracker.log(step, {"loss/total": float(step)})
    (records,) = offline_records(tmp_path)
    assert steps_of(records) == list(range(14))


def test_folders_of_other_runs_stay_where_they_are(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    others = [
        tmp_path / f"wandb/offline-run-20260101_000000-{i}"
        for i in ("x-s3", "01234567-distill-s31")
    ]
    for other in others:
        other.mkdir(parents=True)
    for _ in range(3):
        with Tracker(open_run(tmp_path / "run"), TrackingSettings()) as tracker:
            tracker.run.rewind(0)
            tracker.log(0, {"loss/total": 0.0})
    assert all(other.is_dir() for other in others)
    assert len(list((tmp_path / "wandb").glob("offline-run-*-01234567-distill-s3*"))) == 2
    assert len(list((tmp_path / "wandb" / "superseded").iterdir())) == 2


class Server:
    """As much of W&B's server and client as a resume online needs: it remembers runs by id."""

    def __init__(self):
        self.lines, self.asked = {}, []

    def init(self, *, id, resume, mode, **arguments):
        self.asked.append((id, resume, mode))
        lines = self.lines.setdefault(id, [])
        before = {k: v for line in lines for k, v in line.items()}
        return SimpleNamespace(
            id=id,
            resumed=bool(lines),
            dir=self._folder(arguments["dir"], id),
            summary=before,
            settings=SimpleNamespace(root_dir=arguments["dir"]),
            log=lines.append,
            define_metric=lambda *_, **__: None,
            finish=lambda **_: None,
        )

    def _folder(self, root, id):
        folder = Path(root) / "wandb" / f"run-20260102_000000-{id}" / "files"
        folder.mkdir(parents=True, exist_ok=True)
        return str(folder)


@pytest.mark.parametrize("first", ["online", "disabled"])
def test_a_resume_online_keeps_the_id_and_sends_what_the_server_lacks(tmp_path, monkeypatch, first):
    import wandb

    server = Server()
    monkeypatch.setattr(wandb, "init", server.init)
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    settings = TrackingSettings(wandb=first)
    with pytest.raises(KeyboardInterrupt), Tracker(open_run(tmp_path), settings) as tracker:
        for step in range(10):
            tracker.log(step, {"loss/total": float(step)})
        raise KeyboardInterrupt
    run = open_run(tmp_path)
    older = tmp_path / "wandb" / f"offline-run-20260101_000000-{wandb_id(run.record)}"
    older.mkdir(parents=True)
    if first == "online":
        # As if the last two lines had not come through.
        del server.lines[wandb_id(run.record)][8:]
    with Tracker(run, TrackingSettings()) as tracker:
        run.rewind(6)
        for step in range(6, 14):
            tracker.log(step, {"loss/total": float(step)})
    ((id, lines),) = server.lines.items()
    assert [line["step"] for line in lines if "step" in line] == list(range(14))
    assert set(server.asked) == {(id, "allow", "online")}
    # Synced later, it would send its part a second time.
    assert not older.exists() and (older.parent / "superseded" / older.name).is_dir()


def test_a_dead_service_is_said_once_and_the_next_stage_starts_another(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        with Tracker(open_run(tmp_path / "a"), TrackingSettings()) as tracker:
            tracker.log(0, {"loss/total": 0.0})
            token = os.environ["WANDB_SERVICE"]
            kill_service(token)
            for step in range(1, 8):
                tracker.log(step, {"loss/total": 0.0})
        with Tracker(open_run(tmp_path / "b"), TrackingSettings()) as tracker:
            tracker.log(0, {"loss/total": 0.0})
    assert len(read_metrics(tmp_path / "a")) == 8
    assert load_run(tmp_path / "a").status == "finished"
    (said,) = [r.getMessage() for r in caplog.records if r.name == "ssdistill"]
    assert said.startswith("wandb logging failed (") and "\n" not in said
    (records,) = offline_records(tmp_path / "b")
    assert steps_of(records) == [0]


def kill_service(token):
    """End wandb-core, a child of this process."""
    children = Path(f"/proc/self/task/{os.getpid()}/children")
    for child in children.read_text().split():
        if "wandb-core" in Path(f"/proc/{child}/cmdline").read_text():
            os.kill(int(child), signal.SIGKILL)


def test_a_full_disk_stops_the_mirror_and_not_the_training(tmp_path, monkeypatch, caplog):
    free = iter([10**9, 10**9, 0, 0, 0])
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=next(free)))
    with (
        caplog.at_level(logging.WARNING),
        Tracker(open_run(tmp_path), TrackingSettings()) as tracker,
    ):
        for step in range(5):
            tracker.log(step, {"loss/total": 0.0})
    assert len(read_metrics(tmp_path)) == 5 and load_run(tmp_path).status == "finished"
    (said,) = [r.getMessage() for r in caplog.records if r.name == "ssdistill"]
    assert "no space left on the disk" in said


def test_what_the_service_could_not_write_is_said(tmp_path, caplog):
    with (
        caplog.at_level(logging.WARNING),
        Tracker(open_run(tmp_path), TrackingSettings()) as tracker,
    ):
        tracker.log(0, {"loss/total": 0.0})
        (logger,) = tracker.loggers
        with open(Path(logger._run.dir).parent / "logs" / "debug-internal.log", "a") as file:
            file.write('"msg":"writer: failed to save record: file too large"')
    (said,) = [r.getMessage() for r in caplog.records if r.name == "ssdistill"]
    assert "could not write all files" in said


@pytest.mark.parametrize("folder", ["/proc/nowhere", "file/below"])
def test_a_folder_that_cannot_be_written_to_is_said(tmp_path, monkeypatch, caplog, folder):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path / folder))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with (
        caplog.at_level(logging.WARNING),
        Tracker(open_run(tmp_path / "run"), TrackingSettings()) as tracker,
    ):
        tracker.log(0, {"loss/total": 0.0})
    assert load_run(tmp_path / "run").status == "finished"
    (said,) = [r.getMessage() for r in caplog.records if r.name == "ssdistill"]
    assert said == f"wandb cannot write to {tmp_path / folder}; its files are in {tmp_path}"


def test_in_an_experiment_a_failure_that_all_stages_share_is_said_once(tmp_path, caplog):
    class Broken:
        name = "tensorboard"

        def log(self, *_):
            raise RuntimeError("on fire")

    settings = TrackingSettings(wandb="disabled")
    with caplog.at_level(logging.WARNING), session({}, (), num_seeds=1):
        for name in ("a", "b", "c"):
            tracker = Tracker(open_run(tmp_path / name), settings)
            tracker.loggers.append(Broken())
            tracker.log(0, {"loss/total": 1.0})
    assert len(caplog.records) == 1
