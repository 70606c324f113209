"""Finish the stages of several experiments with one call of an executor."""

from collections.abc import Mapping
from pathlib import Path

from ssdistill.chain.executors import Executor, Job, Key
from ssdistill.chain.plan import plan_stages
from ssdistill.chain.run import name_of
from ssdistill.chain.stages import Identity
from ssdistill.chain.workspace import open_workspace
from ssdistill.errors import UserError, is_out_of_memory
from ssdistill.experiment.schema import Experiment


def finish_side_by_side(
    experiments: Mapping[str, Experiment], root: Path, executor: Executor
) -> None:
    """Do all stages of all experiments that an executor can do, each once.

    What went wrong is not raised: the run of each experiment, which is to follow, reuses what is
    finished, does the rest again and says why it fails.

    Args:
        experiments: by the name that messages have for them.
        root: the runs folder.

    Raises:
        KeyboardInterrupt: after Ctrl-C; running again goes on from there.
    """
    jobs: dict[Key, Job] = {}
    for name, experiment in experiments.items():
        try:
            processes = executor.processes_for(experiment)
            workspace = open_workspace(experiment, root, processes=processes)
            stages = plan_stages(workspace)
        except UserError:
            continue
        identity = Identity.of(experiment)
        for number, stage in enumerate(stages, start=1):
            label = f"[{name}:{number}/{len(stages)}] {name_of(stage)}"
            job = Job(stage, workspace, identity, label)
            jobs.setdefault(job.key, job)
    try:
        executor.finish(list(jobs.values()))
    except Exception as error:
        if not (isinstance(error, UserError) or is_out_of_memory(error)):
            raise
