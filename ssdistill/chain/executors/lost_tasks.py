"""Say why a stage was lost: its process, its node, or their memory."""

from ssdistill.errors import UserError, one_line

RETRIES = 3
"""How often a stage is started again after its process or its node was lost."""


def lost(error: Exception) -> UserError:
    """Return what is said of a task that Ray gave up."""
    from ray import exceptions

    from ssdistill.chain.executors.stage_processes import LostProcess

    if isinstance(error, LostProcess):
        return UserError(one_line(getattr(error, "cause", error)))
    kinds = {
        exceptions.OutOfMemoryError: "its node ran out of memory; raise "
        "device.resources.memory, so that fewer stages run side by side, or lower batch_size",
        exceptions.NodeDiedError: "its node was lost",
        exceptions.TaskUnschedulableError: "its node was lost, and no other is large enough",
        exceptions.WorkerCrashedError: f"its process was lost {RETRIES + 1} times; see the "
        "logs of Ray on the node",
    }
    for kind, text in kinds.items():
        if isinstance(error, kind):
            return UserError(text)
    return UserError(f"Ray could not run it ({one_line(error)})")
