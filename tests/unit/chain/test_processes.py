import os
import subprocess
import sys

import pytest

from ssdistill.chain import processes as launch
from ssdistill.chain.process_group import SET_HERE, Processes
from ssdistill.chain.processes import (
    Launch,
    count_processes,
    require_single_process,
    several_processes,
    tasks_per_node,
)
from ssdistill.errors import UserError
from ssdistill.train.fabric import build_fabric
from ssdistill.train.settings import DeviceSettings


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch):
    names = {name for _, size, ranks in launch.LAUNCHERS for name in (size, *ranks)}
    for name in (*names, *SET_HERE, *(n for n in os.environ if n.startswith("SLURM"))):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(launch, "SECONDS_FOR_THE_FIRST", 0.0)


ALONE = {
    "nothing": {},
    "batch script": {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_PROCID": "0"},
    "batch script without a number": {"SLURM_NTASKS": "4"},
    "srun of one": {"SLURM_NTASKS": "4", "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"},
    "tasks per node": {"SLURM_NTASKS": "8", "SLURM_NTASKS_PER_NODE": "4", "SLURM_NNODES": "2"},
    "torchrun of one": {"WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0"},
    "mpirun of one": {"OMPI_COMM_WORLD_SIZE": "1", "OMPI_COMM_WORLD_RANK": "0"},
    "empty": {"WORLD_SIZE": ""},
}
SEVERAL = {
    "torchrun": ({"WORLD_SIZE": "2", "RANK": "1"}, Launch("torchrun", 2, 1)),
    "srun": (
        {"SLURM_NTASKS": "4", "SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "0"},
        Launch("srun", 4, 0),
    ),
    "srun, second task": ({"SLURM_NTASKS": "4", "SLURM_PROCID": "1"}, Launch("srun", 4, 1)),
    "torchrun in srun": (
        {"WORLD_SIZE": "2", "RANK": "0", "SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "0"},
        Launch("torchrun", 2, 0),
    ),
    "Open MPI": (
        {"OMPI_COMM_WORLD_SIZE": "3", "OMPI_COMM_WORLD_RANK": "2"},
        Launch("mpirun", 3, 2),
    ),
    "MPICH": ({"PMI_SIZE": "2", "PMI_RANK": "1"}, Launch("mpirun", 2, 1)),
}


@pytest.mark.parametrize("variables", ALONE.values(), ids=ALONE)
def test_one_process_is_one_whatever_the_cluster_says(monkeypatch, variables):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert several_processes() is None
    require_single_process()
    # What Fabric makes of the same variables, unless it is told: an error, or several processes.
    assert build_fabric("cpu").world_size == 1


@pytest.mark.parametrize("variables, expected", SEVERAL.values(), ids=SEVERAL)
def test_commands_for_one_process_refuse_several_with_what_to_do(monkeypatch, variables, expected):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert several_processes() == expected
    with pytest.raises(UserError) as refused:
        require_single_process()
    said = str(refused.value)
    assert f"{expected.launcher} started {expected.size} processes" in said
    assert "\n" not in said
    assert "one" in said.split(": ", 1)[1] or "--ntasks=1" in said


COMMANDS = {
    ("run", "nope"): "error: nope: no such file or folder",
    ("reproduce", "nope"): "error: nope: no such file or folder",
    ("run", "quickstart", "--dry-run"): "error: torchrun started 2 processes",
    ("probe", "nope"): "error: torchrun started 2 processes",
}


@pytest.mark.parametrize("command, expected", COMMANDS.items(), ids=map(" ".join, COMMANDS))
def test_only_the_first_process_prints_an_error(monkeypatch, capsys, command, expected):
    from ssdistill.commands.main import main

    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    assert main(command) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith(expected)
    assert err.count("\n") == 1
    monkeypatch.setenv("RANK", "1")
    try:
        assert main(command) == 2
    except SystemExit as left:
        assert left.code == 2
    assert capsys.readouterr() == ("", "")


def test_looking_things_up_is_open_to_every_process(monkeypatch, capsys):
    from ssdistill.commands.main import main

    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["list", "steps"]) == 0
    assert "prune" in capsys.readouterr().out


@pytest.mark.parametrize("processes", [1, 2])
def test_torchrun(processes, tmp_path):
    """However many processes there are, one of them says what is wrong."""
    environ = {k: v for k, v in os.environ.items() if not k.startswith("SLURM")}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command = ["-m", "ssdistill.commands.main", "run", str(tmp_path / "nope.yaml")]
    done = subprocess.run(
        [*torchrun, f"--nproc_per_node={processes}", *command],
        env=environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode != 0
    said = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    (said,) = said
    assert "no such file or folder" in said


def test_what_only_a_training_needs_is_not_imported_before_one():
    code = (
        "import sys; import ssdistill.chain.run; from ssdistill.train.fabric import device_of; "
        "device_of('cpu'); print({'lightning_fabric', 'onnx', 'onnxruntime', 'sklearn'} & "
        "sys.modules.keys())"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "set()"


class TestCount:
    def test_one_without_settings_and_without_a_launcher(self):
        assert count_processes(DeviceSettings()) == 1

    def test_devices_of_all_nodes(self):
        assert count_processes(DeviceSettings(devices=4, num_nodes=2)) == 8

    def test_a_launcher_counts_them(self, monkeypatch):
        monkeypatch.setenv("WORLD_SIZE", "6")
        monkeypatch.setenv("RANK", "5")
        assert count_processes(DeviceSettings()) == 6
        assert count_processes(DeviceSettings(devices=3, num_nodes=2)) == 6
        with pytest.raises(UserError, match="8 processes, but torchrun started 6"):
            count_processes(DeviceSettings(devices=4, num_nodes=2))

    def test_nodes_need_devices(self):
        with pytest.raises(UserError, match=r"set device\.devices, too"):
            count_processes(DeviceSettings(num_nodes=2))

    @pytest.mark.parametrize(
        "variables, count",
        [
            ({"SLURM_TASKS_PER_NODE": "4"}, 4),
            ({"SLURM_TASKS_PER_NODE": "8", "SLURM_STEP_TASKS_PER_NODE": "2(x4)"}, 2),
            ({"SLURM_STEP_NUM_NODES": "2"}, 4),
            ({}, 8),
        ],
    )
    def test_tasks_that_srun_started_on_each_node(self, variables, count, monkeypatch):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        assert tasks_per_node(8) == count

    @pytest.mark.parametrize("said", ["2,1", "3(x2),2", "5"])
    def test_tasks_of_unequal_nodes_are_refused(self, said, monkeypatch):
        monkeypatch.setenv("SLURM_STEP_TASKS_PER_NODE", said)
        with pytest.raises(UserError, match="use srun --ntasks-per-node"):
            tasks_per_node(8)

    def test_machines_are_told_of_each_other_before_they_meet(self, monkeypatch):
        monkeypatch.setenv("MASTER_ADDR", "first")
        with pytest.raises(UserError, match=r"^device\.num_nodes=2: set MASTER_ADDR, MASTER_PORT"):
            Processes(DeviceSettings(devices=1, num_nodes=2))._cluster_environment()

    def test_other_launchers_are_refused(self, monkeypatch):
        monkeypatch.setenv("PMI_SIZE", "2")
        with pytest.raises(UserError, match=r"mpirun started 2 processes.*use torchrun or srun"):
            count_processes(DeviceSettings())

    def test_processes_that_were_started_here_know_their_numbers(self, monkeypatch):
        variables = {"SSDISTILL_PROCESSES": "4", "SSDISTILL_NODES": "2", "NODE_RANK": "1"}
        for name, value in {**variables, "LOCAL_RANK": "1", "WORLD_SIZE": "4"}.items():
            monkeypatch.setenv(name, value)
        assert several_processes() == Launch("ssdistill", 4, 3)
        assert count_processes(DeviceSettings(devices=2, num_nodes=2)) == 4
