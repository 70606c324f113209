import pickle
import socket
from pathlib import Path
from types import SimpleNamespace

import pytest

from ssdistill.chain.executors import Job, nodes, on_ray, on_several_nodes, ray_cluster
from ssdistill.chain.executors.bulletin import LINE, PROGRESS, STARTED, Lines
from ssdistill.chain.executors.choice import executor_for
from ssdistill.chain.executors.live_view import LiveView
from ssdistill.chain.executors.on_ray import OnRay
from ssdistill.chain.executors.ray_cluster import (
    Node,
    Reserved,
    check_address,
    parse_address,
    reserved_by,
)
from ssdistill.chain.executors.ray_tasks import Failure, RayTasks
from ssdistill.chain.executors.requests import Request
from ssdistill.chain.executors.stage_processes import LostProcess
from ssdistill.chain.run import Serial
from ssdistill.chain.stages import Stage
from ssdistill.commands.main import main
from ssdistill.errors import DamagedFile, UserError
from ssdistill.experiment.reading import load_experiment
from ssdistill.train import progress
from ssdistill.train.progress import Progress, TrainingProgress
from ssdistill.train.settings import DeviceSettings


@pytest.fixture
def closed_port():
    """A port of this machine that nobody answers."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


class TestAddresses:
    def test_this_machine_is_the_default_of_ray(self, monkeypatch):
        monkeypatch.delenv("RAY_ADDRESS", raising=False)
        assert parse_address("ray") is None
        monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
        assert parse_address("ray") == "10.0.0.1:6379"

    @pytest.mark.parametrize("where", ["ray://head:10001", "10.0.0.1:6379"])
    def test_of_a_cluster(self, where):
        assert parse_address(where) == where

    @pytest.mark.parametrize(
        "where", ["", "rya", "ray://", "head:", ":6379", "a:70000", "http://a:1"]
    )
    def test_others_are_refused(self, where):
        with pytest.raises(UserError, match="expected ray, ray://host:port or host:port"):
            parse_address(where)

    @pytest.mark.parametrize("form", ["127.0.0.1:{}", "ray://127.0.0.1:{}"])
    def test_nobody_answers(self, form, closed_port):
        with pytest.raises(UserError, match=r"nobody answers there \(.*refused.*ray start --head"):
            check_address(form.format(closed_port))

    def test_a_command_says_so_at_once_in_one_line(self, closed_port, capsys, tmp_path):
        command = ["run", "quickstart", "--on", f"127.0.0.1:{closed_port}"]
        assert main([*command, "--runs", str(tmp_path / "runs")]) == 2
        out, err = capsys.readouterr()
        assert out == "" and err.count("\n") == 1 and "nobody answers there" in err
        assert not (tmp_path / "runs").exists()

    def test_something_else_answers(self, monkeypatch):
        monkeypatch.setattr(ray_cluster, "SECONDS_TO_BE_HEALTHY", 0.01)
        with pytest.raises(UserError, match="what answers there is no Ray cluster"):
            ray_cluster.connect("127.0.0.1:1")

    def test_ray_is_optional(self, monkeypatch):
        monkeypatch.setattr(ray_cluster.importlib.util, "find_spec", lambda name: None)
        with pytest.raises(UserError, match=r"pip install 'ssdistill\[ray\]'"):
            executor_for("ray")


def test_without_a_cluster_this_process_does_the_stages():
    assert isinstance(executor_for(None), Serial)


class TestRequirements:
    @pytest.fixture
    def executor(self, monkeypatch):
        monkeypatch.delenv("RAY_ADDRESS", raising=False)
        return OnRay("ray")

    def test_the_processes_of_a_node_are_counted(self, executor):
        experiment, _ = load_experiment("quickstart", ["device.num_nodes=2"])
        with pytest.raises(UserError, match=r"set device\.devices, too"):
            executor.processes_for(experiment)

    def test_this_process_is_none_of_them(self, executor):
        experiment, _ = load_experiment("quickstart", ["device.devices=2"])
        assert executor.processes_for(experiment).size == 1
        assert Serial().processes_for(experiment).size == 2

    def test_a_sweep_of_wandb_has_one_run(self, executor, monkeypatch):
        monkeypatch.setattr(on_ray, "in_sweep", lambda: True)
        with pytest.raises(UserError, match="W&B sweep"):
            executor.processes_for(load_experiment("quickstart")[0])


class TestNodes:
    def test_the_same_versions(self):
        assert nodes.difference(nodes.facts(), nodes.facts()) is None

    @pytest.mark.parametrize("name", ["python", "torch", "ssdistill"])
    def test_others(self, name):
        problem = nodes.difference({**nodes.facts(), name: "0.1"}, nodes.facts())
        assert problem.startswith(f"has {name} 0.1, not ") and "on every node" in problem

    def test_a_runs_folder_that_is_seen(self, tmp_path):
        with nodes.token_in(tmp_path) as token:
            assert nodes.node_problem(str(token), nodes.facts()) is None
        assert not list(tmp_path.iterdir())

    def test_one_that_is_not(self, tmp_path):
        problem = nodes.node_problem(str(tmp_path / "elsewhere" / "token"), nodes.facts())
        assert problem.startswith(f"does not see the runs folder {tmp_path / 'elsewhere'}")

    def test_one_that_cannot_be_written_to(self, tmp_path, monkeypatch):
        def full(*_):
            raise OSError(28, "No space left on device")

        with nodes.token_in(tmp_path) as token:
            monkeypatch.setattr(nodes.os, "fsync", full)
            problem = nodes.node_problem(str(token), nodes.facts())
        assert "cannot write to the runs folder" in problem and "No space left" in problem
        assert not list(tmp_path.iterdir())


class TestResources:
    NODES = (Node("a", "a", 8, 0, 16e9), Node("b", "b", 4, 2, 64e9))

    @pytest.mark.parametrize("accelerator, gpus", [("auto", 1), ("cpu", 0), ("cuda", 1)])
    def test_one_device(self, accelerator, gpus):
        reserved = reserved_by(DeviceSettings(accelerator=accelerator), self.NODES)
        assert (reserved.cpus, reserved.gpus, reserved.memory) == (1, gpus, 0)

    def test_auto_is_a_cpu_without_gpus(self):
        assert reserved_by(DeviceSettings(), self.NODES[:1]).gpus == 0

    def test_as_set(self):
        device = DeviceSettings(resources={"cpus": 3, "gpus": 0.5, "memory": 20})
        reserved = reserved_by(device, self.NODES)
        assert (reserved.cpus, reserved.gpus, reserved.memory) == (3, 0.5, 20e9)
        assert [reserved.fits(node) for node in self.NODES] == [False, True]

    def test_of_several_processes(self):
        device = DeviceSettings(devices=2, resources={"cpus": 3, "memory": 4})
        reserved = reserved_by(device, self.NODES[:1], 2)
        assert (reserved.cpus, reserved.gpus, reserved.memory) == (6, 0, 8e9)

    @pytest.mark.parametrize(
        "processes, num_nodes, each, nodes",
        [(2, 1, 8, 1), (4, 1, 8, 2), (6, 1, 8, 3), (2, 2, 4, 2), (6, 3, 8, 3), (3, 1, 4, 3)],
    )
    def test_on_as_few_nodes_as_can_be(self, processes, num_nodes, each, nodes):
        device = DeviceSettings(num_nodes=num_nodes, resources={"cpus": 4, "memory": 1})
        same = [Node(name, name, 8 - 2 * (processes == 3), 0, 16e9) for name in "abc"]
        reserved = reserved_by(device, same, processes)
        assert (reserved.cpus, reserved.memory / 1e9, reserved.nodes) == (each, each / 4, nodes)

    @pytest.mark.parametrize("processes, num_nodes", [(3, 1), (4, 1), (2, 2)])
    def test_in_unequal_parts(self, processes, num_nodes):
        device = DeviceSettings(num_nodes=num_nodes, resources={"cpus": 5})
        with pytest.raises(UserError, match=rf"^device\.devices: {processes} processes in equal"):
            reserved_by(device, self.NODES, processes)

    def test_on_more_nodes_than_there_are(self):
        with pytest.raises(UserError, match=r"num_nodes=3: the cluster has fewer nodes: 2"):
            reserved_by(DeviceSettings(num_nodes=3), self.NODES, 3)

    @pytest.mark.parametrize(
        "resources, text",
        [
            ({"cpus": 9}, r"device\.resources\.cpus=9: no node has more than 8"),
            ({"gpus": 3}, r"device\.resources\.gpus=3: no node has more than 2"),
            ({"memory": 65}, r"device\.resources\.memory=65: no node has more than 64"),
            ({"cpus": 8, "gpus": 1}, "no node has that much of everything"),
        ],
    )
    def test_more_than_any_node_has(self, resources, text):
        with pytest.raises(UserError, match=text):
            reserved_by(DeviceSettings(resources=resources), self.NODES)


class TestSeveralNodes:
    @pytest.mark.parametrize(
        "errors, kind, text",
        [
            ({1: LostProcess("gone"), 0: UserError("wrong")}, UserError, "wrong"),
            ({0: LostProcess("gone"), 1: ValueError("a bug")}, ValueError, "a bug"),
            ({1: LostProcess("second"), 0: LostProcess("first")}, LostProcess, "first"),
            ({}, LostProcess, "by Ray"),
        ],
    )
    def test_what_tells_most_is_said(self, errors, kind, text):
        cause = on_several_nodes._cause(RuntimeError("by Ray"), errors)
        assert type(cause) is kind and str(cause) == text

    def test_a_node_is_told_of_its_part_alone(self):
        experiment, _ = load_experiment("quickstart", ["device.devices=4"])
        stage = Stage("teacher", "pretrain", {"steps": 1}, "data", 0)
        request = Request(experiment, None, stage, "r", ".", 1, Reserved(2, 0, 0, 2))
        device = request.experiment_of_node.device
        assert (device.devices, device.num_nodes, experiment.device.num_nodes) == (2, 2, 1)
        alone = Request(experiment, None, stage, "r", ".", 1, Reserved(4, 0, 0))
        assert alone.experiment_of_node is experiment

    def test_a_store_is_no_folder_that_nodes_share(self):
        experiment, _ = load_experiment("quickstart", ["device.devices=2"])
        workspace = SimpleNamespace(experiment=experiment, remote=SimpleNamespace(url="s3://b/r"))
        stage = Stage("teacher", "pretrain", {"steps": 1}, "data", 0)
        tasks = object.__new__(RayTasks)
        tasks.nodes = [Node(name, name, 1, 0, 1e9) for name in "ab"]
        with pytest.raises(
            UserError, match=r"^--runs s3://b/r: .* are on 2 nodes, which must share"
        ):
            tasks._reserved(Job(stage, workspace, None, "pretrain"))


def test_an_error_about_a_damaged_file_travels():
    error = pickle.loads(pickle.dumps(DamagedFile(Path("a/b"), "checksum mismatch")))
    assert (error.path, error.reason) == (Path("a/b"), "checksum mismatch")
    assert str(error) == str(DamagedFile(Path("a/b"), "checksum mismatch"))


def test_lines_are_passed_on_as_a_whole():
    said = []
    lines = Lines(said.append)
    for text in ("a", "b\n", "\n", "c\nd"):
        lines.write(text)
    assert said == ["ab", "c"]


JOBS = [SimpleNamespace(key=(name, 0), label=f"[{n}/3] {name}") for n, name in enumerate("abc", 1)]


class TestView:
    @pytest.fixture
    def said(self, monkeypatch):
        lines = []
        monkeypatch.setattr(progress.console, "print", lambda line, **_: lines.append(line))
        return lines

    def test_plain_lines(self, said, monkeypatch):
        monkeypatch.setattr("ssdistill.chain.executors.live_view.EVERY_SECONDS", -1.0)
        a, b = JOBS[0].key, JOBS[1].key
        with LiveView(JOBS) as view:
            view.show([(a, STARTED, "x"), (b, STARTED, "y"), (a, LINE, "no labels")])
            assert view.running == 2
            view.show([(a, PROGRESS, Progress(3, 9, 100.0, 0.5))])
            view.end(a, "2 s")
            view.show([(a, PROGRESS, Progress(9, 9, 100.0, 0.1)), (("other", 0), LINE, "")])
            assert view.running == 1
        assert said == [
            "[1/3] a: started on x",
            "[2/3] b: started on y",
            "  [1/3] no labels",
            "[1/3] a: 3/9, 100 img/s, loss 0.500",
            "[1/3] a: 2 s",
        ]

    def test_a_second_start_is_told(self, said):
        with LiveView(JOBS) as view:
            view.show([(JOBS[0].key, STARTED, "x"), (JOBS[0].key, STARTED, "y")])
        assert said[-1] == "[1/3] a: its process was lost; started again on y"


def test_a_watched_training_says_nothing_itself(monkeypatch, capsys):
    seen = []
    monkeypatch.setattr(TrainingProgress, "watchers", [seen.append])
    with TrainingProgress("a", 0, 9, 4, every_seconds=-1) as training:
        training.show(3, 0.25)
    (shown,) = seen
    assert (shown.step, shown.num_steps, shown.loss) == (3, 9, 0.25) and shown.rate > 0
    assert capsys.readouterr().err == ""


class TestSummary:
    @staticmethod
    def summary(**failures):
        tasks = RayTasks.__new__(RayTasks)
        tasks.jobs = {job.key: job for job in JOBS}
        tasks._failures = {(name, 0): failure for name, failure in failures.items()}
        return tasks._summary()

    def test_one_failed(self):
        error = self.summary(a=Failure(UserError("bad")), b=Failure(None, ("a", 0)))
        assert str(error) == "[1/3] a: bad; 1 more were not run because of that"

    def test_several_failed(self):
        error = self.summary(a=Failure(UserError("bad")), b=Failure(UserError("worse")))
        assert str(error) == "2 stages failed (the others are named above), such as [1/3] a: bad"

    def test_a_damaged_file_is_made_anew_if_there_is_nothing_else(self):
        damaged = DamagedFile(Path("x"), "y")
        assert self.summary(a=Failure(damaged)) is damaged
        assert "2 stages failed" in str(self.summary(a=Failure(damaged), b=Failure(UserError("z"))))

    def test_an_error_of_ours_is_reported_as_one(self):
        error = KeyError("x")
        assert self.summary(a=Failure(UserError("bad")), b=Failure(error)) is error
