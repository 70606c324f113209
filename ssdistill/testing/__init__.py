"""Checks that every loss, method, step, protocol, source, teacher, runtime and network passes.

For authors of plug-ins: ``check_loss(Mine)`` in a test, with settings where there are required
ones. A class need not be registered. One file per family; what only ssdistill's own kinds must
do (a citation with a number, a config, rows in tables) belongs in the tests of this repository.

Every family has a mapping of its checks by name, such as :data:`LOSS_CHECKS`. What is checked is a
:class:`Candidate`: a class of a registry with its settings.
"""

from collections.abc import Callable
from typing import Any

from torch import nn

from ssdistill.settings import Size
from ssdistill.settings.registry import (
    LOSSES,
    METHODS,
    PROTOCOLS,
    RUNTIMES,
    SOURCES,
    STEPS,
    TEACHERS,
)
from ssdistill.testing.candidate import Candidate, Check, run_checks
from ssdistill.testing.distillations import IN_DISTILLATIONS
from ssdistill.testing.float16 import LOSSES_IN_FLOAT16
from ssdistill.testing.losses import ON_OUTPUTS
from ssdistill.testing.methods import IN_ONE_PROCESS
from ssdistill.testing.networks import NETWORK_CHECKS, SIDE, run_network_checks
from ssdistill.testing.protocol_traps import TRAPS
from ssdistill.testing.protocols import REPORTS
from ssdistill.testing.runtimes import RUNTIME_CHECKS
from ssdistill.testing.sharding import LOSSES_IN_TWO_PROCESSES, METHODS_IN_TWO_PROCESSES
from ssdistill.testing.sources import SOURCE_CHECKS
from ssdistill.testing.steps import STEP_CHECKS
from ssdistill.testing.teachers import TEACHER_CHECKS

__all__ = [
    "LOSS_CHECKS",
    "METHOD_CHECKS",
    "NETWORK_CHECKS",
    "PROTOCOL_CHECKS",
    "RUNTIME_CHECKS",
    "SOURCE_CHECKS",
    "STEP_CHECKS",
    "TEACHER_CHECKS",
    "Candidate",
    "Check",
    "check_loss",
    "check_method",
    "check_network",
    "check_protocol",
    "check_runtime",
    "check_source",
    "check_step",
    "check_teacher",
    "run_checks",
]

LOSS_CHECKS = {**ON_OUTPUTS, **LOSSES_IN_FLOAT16, **IN_DISTILLATIONS, **LOSSES_IN_TWO_PROCESSES}
METHOD_CHECKS = {**IN_ONE_PROCESS, **METHODS_IN_TWO_PROCESSES}
PROTOCOL_CHECKS = {**REPORTS, **TRAPS}


def check_loss(cls: type, **settings: Any) -> None:
    """Check a distillation loss.

    Its gradients and its state, bfloat16 and float16, the example in its docstring with residual
    networks and transformers, micro-batches, two processes, and what it says of itself.

    Args:
        cls: the class; its module has to be importable for two processes, or be a script that
            can be forked.
        settings: of it, where others than the defaults are to be checked, or some are required.

    Raises:
        AssertionError: some checks fail; each is named, with what is wrong, in a line of its own.
    """
    run_checks(LOSS_CHECKS, Candidate(LOSSES, cls, settings))


def check_method(cls: type, **settings: Any) -> None:
    """Check a pretraining method, on a tiny residual network or transformer.

    Its gradients and its state, bfloat16 and float16, what it exports, micro-batches and two
    processes. Small heads and queues make it fast. Arguments and errors: as :func:`check_loss`.
    """
    run_checks(METHOD_CHECKS, Candidate(METHODS, cls, settings))


def check_step(cls: type, **settings: Any) -> None:
    """Check a compression step: its plan, and what it makes of a tiny residual network.

    Arguments and errors: as :func:`check_loss`.
    """
    run_checks(STEP_CHECKS, Candidate(STEPS, cls, settings))


def check_protocol(cls: type, **settings: Any) -> None:
    """Check an evaluation protocol on tiny labeled images.

    What it reports, that it leaves the encoder as it was, and that neither other test images nor
    their labels change an answer. Arguments and errors: as :func:`check_loss`.
    """
    run_checks(PROTOCOL_CHECKS, Candidate(PROTOCOLS, cls, settings))


def check_source(cls: type, **settings: Any) -> None:
    """Check a data source: its images, names, labels and identities, and a store of it.

    A few dozen images of each split are read. Arguments and errors: as :func:`check_loss`.
    """
    run_checks(SOURCE_CHECKS, Candidate(SOURCES, cls, settings))


def check_teacher(cls: type, **settings: Any) -> None:
    """Check a kind of teacher: that it loads the same encoder every time, ready to embed.

    Arguments and errors: as :func:`check_loss`.
    """
    run_checks(TEACHER_CHECKS, Candidate(TEACHERS, cls, settings))


def check_runtime(cls: type, **settings: Any) -> None:
    """Check a runtime: its files agree with PyTorch, and others are refused.

    Where it is not installed, the checks that write a file are left to another machine.
    Arguments and errors: as :func:`check_loss`.
    """
    run_checks(RUNTIME_CHECKS, Candidate(RUNTIMES, cls, settings))


def check_network(
    network: str | Callable[..., nn.Module], *, size: Size = SIDE, **args: Any
) -> None:
    """Check a network, by the name that configs call it or by what builds it.

    Args:
        network: a name that :func:`ssdistill.models.networks.network` or timm knows, or a class
            or a function that returns a module.
        size: of the images, in pixels.
        args: ``encoder.args``.

    Raises:
        AssertionError: some checks fail; each is named, with what is wrong, in a line of its own.
    """
    run_network_checks(network, size, args)
