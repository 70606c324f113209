"""Weights from the internet, which may not be there."""

from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException

from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from ssdistill.errors import UserError

# The bases of HfHubHTTPError are those of whichever client the installed hub uses; torch.hub
# raises URLError, an OSError.
FAILURES = (OSError, HTTPException, HFValidationError, *HfHubHTTPError.__bases__)


@contextmanager
def downloading(what: str, remedy: str) -> Iterator[None]:
    """Turn a failed download into a UserError of one line.

    Args:
        what: the thing wanted, as it stands in the config.
        remedy: what to do without a connection.
    """
    try:
        yield
    except FAILURES as error:
        raise UserError(f"{what} cannot be downloaded ({reason(error)}); {remedy}") from error


def reason(error: BaseException) -> str:
    """The type and the first line of an error from elsewhere."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
