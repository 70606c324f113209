"""Choose who does the stages."""

from ssdistill.chain.executors import Executor
from ssdistill.chain.run import Serial


def executor_for(where: str | None, trust: bool = False) -> Executor:
    """Return what does the stages.

    Args:
        where: None for this process, else ``ray``, ``ray://host:port`` or ``host:port``.
        trust: whether stages may run compiled models that were compiled elsewhere.

    Raises:
        UserError: Ray is not installed, or nobody answers at the address.
    """
    if where is None:
        return Serial()
    from ssdistill.chain.executors.on_ray import OnRay

    return OnRay(where, trust)
