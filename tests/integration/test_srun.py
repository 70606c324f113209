"""Two tasks as srun starts them: nothing but SLURM's variables tells them of each other."""

from forked import free_port, run_forked
from test_several_processes import WORDS, environment, weights


def variables(rank: int, port: int) -> dict[str, str]:
    """What SLURM tells a task."""
    return {
        "SLURM_JOB_ID": "4711",
        "SLURM_JOB_NAME": "distill",
        "SLURM_NTASKS": "2",
        "SLURM_STEP_TASKS_PER_NODE": "2",
        "SLURM_NNODES": "1",
        "SLURM_NODELIST": "127.0.0.1",
        "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_PROCID": str(rank),
        "SLURM_LOCALID": str(rank),
        "SLURM_NODEID": "0",
        "MASTER_PORT": str(port),
    }


def test_tasks_of_a_step_share_the_experiment(tmp_path):
    port = free_port()
    words = [*WORDS, "--runs", str(tmp_path)]
    tasks = [{"words": words, "variables": variables(rank, port)} for rank in range(2)]
    (done,) = run_forked([tasks], environment())
    assert done.statuses == [0, 0], done.said
    # What one process says is said once.
    assert done.said.count("stages,") == 1 and done.said.count("report.html") == 1
    assert set(weights(tmp_path)) >= {"pretrain", "distill"}
