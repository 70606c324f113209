"""Downloads of pretrained weights, with one-line errors when they fail."""

import contextlib
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException
from typing import Any, cast

from huggingface_hub import constants
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import _http, get_session

from ssdistill.errors import UserError, shortened

# The bases of HfHubHTTPError are those of whichever client the installed hub uses; torch.hub
# raises URLError, an OSError.
HUB_BASES = cast("tuple[type[Exception], ...]", HfHubHTTPError.__bases__)
FAILURES = (OSError, HTTPException, HFValidationError, *HUB_BASES)
HUB_SECONDS, STALLED_SECONDS = 5.0, 30.0
"""Seconds the hub may take to answer, and seconds a download may stall."""


@contextmanager
def downloading(subject: str, remedy: str, hub: bool = False) -> Iterator[None]:
    """Turn a failed download into a UserError of one line.

    Args:
        subject: the thing to download, as the config names it.
        remedy: what to do without a connection.
        hub: whether it comes from the Hugging Face Hub. Without a connection its client would
            try again for a minute, aloud; it is told to look into its cache alone.
    """
    forbidden = hub and constants.HF_HUB_OFFLINE
    reached = not hub or forbidden or _hub_answers()
    try:
        with _socket_timeout(), contextlib.nullcontext() if reached else _offline():
            yield
    except FAILURES as error:
        why = "" if reached else f": no connection to {constants.ENDPOINT}"
        why = ": HF_HUB_OFFLINE forbids downloads; unset it" if forbidden else why
        if hub:
            remedy += f", or add them to the cache {constants.HF_HUB_CACHE} (HF_HUB_CACHE)"
        raise UserError(
            f"{subject} cannot be downloaded ({reason(error)}){why}; {remedy}"
        ) from error


def _hub_answers() -> bool:
    """Whether the hub answers any request within ``HUB_SECONDS``."""
    answers: list[Any] = []

    def ask() -> None:
        # Each client has exceptions of its own for a connection that fails.
        with contextlib.suppress(Exception):
            answers.append(get_session().head(constants.ENDPOINT, timeout=HUB_SECONDS))

    # In a thread: looking up a name has no time limit of its own.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(HUB_SECONDS)
    return bool(answers)


@contextmanager
def _offline() -> Iterator[None]:
    """Restrict the hub's client to its cache inside the ``with`` block."""
    # Sessions of earlier versions know only what held when they were opened.
    reset = getattr(_http, "reset_sessions", lambda: None)
    constants.HF_HUB_OFFLINE = True
    reset()
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = False
        reset()


@contextmanager
def _socket_timeout() -> Iterator[None]:
    former_timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(former_timeout or STALLED_SECONDS)
    try:
        yield
    finally:
        socket.setdefaulttimeout(former_timeout)


def reason(error: BaseException) -> str:
    """Type and first line of a library's error."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {shortened(lines[0], 150)}" if lines else type(error).__name__
