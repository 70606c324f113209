"""Two tasks as srun starts them: nothing but SLURM's variables tells them of each other."""

import socket
import subprocess
from pathlib import Path

from test_several_processes import COMMAND, LIMIT, environment, weights


def task(root: Path, rank: int, port: int) -> subprocess.Popen:
    slurm = {
        "SLURM_JOB_ID": "4711",
        "SLURM_JOB_NAME": "distill",
        "SLURM_NTASKS": "2",
        "SLURM_NTASKS_PER_NODE": "2",
        "SLURM_NNODES": "1",
        "SLURM_NODELIST": "127.0.0.1",
        "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_PROCID": str(rank),
        "SLURM_LOCALID": str(rank),
        "SLURM_NODEID": "0",
        "MASTER_PORT": str(port),
    }
    return subprocess.Popen(
        [*COMMAND, "--runs", str(root)],
        env=environment() | slurm,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_tasks_of_a_step_share_the_experiment(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    tasks = [task(tmp_path, rank, port) for rank in range(2)]
    said = [one.communicate(timeout=LIMIT) for one in tasks]
    assert [one.returncode for one in tasks] == [0, 0], said
    assert "report.html" in said[0][0] and said[1][0] == ""
    assert set(weights(tmp_path)) >= {"pretrain", "distill"}
