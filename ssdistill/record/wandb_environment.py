"""W&B settings from environment variables, unless the config decides."""

import netrc
import os
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlparse

from ssdistill.errors import UserError, nearest
from ssdistill.record.tracking_settings import TrackingSettings

CLOUD = "https://api.wandb.ai"
PROJECT = "ssdistill"
Mode = Literal["online", "offline", "disabled"]
MODES: dict[str, Mode] = {
    "online": "online",
    "run": "online",
    "shared": "online",
    "offline": "offline",
    "dryrun": "offline",
    "disabled": "disabled",
}
"""What W&B takes for ``WANDB_MODE``, old names included."""
LONGEST_TAG, LONGEST_NAME = 64, 128


def wandb_mode(settings: TrackingSettings) -> Mode:
    """The mode to use: the config's, else ``WANDB_MODE``'s, else what an API key allows.

    Raises:
        UserError: ``online`` was requested and there is no key; an unknown ``WANDB_MODE``.
    """
    mode, key = settings.wandb, "tracking.wandb"
    if mode == "auto":
        mode, key = _mode_of_environment(), "WANDB_MODE"
    if mode is None:
        return "online" if has_key() else "offline"
    if mode == "online" and not has_key():
        raise UserError(
            f"{key}=online requires an API key: run `wandb login`, or set {key}=offline"
        )
    return mode


def _mode_of_environment() -> Mode | None:
    mode = variable("WANDB_MODE")
    if mode is None:
        disabled = (variable("WANDB_DISABLED") or "").lower() in ("1", "true", "yes", "on")
        return "disabled" if disabled else None
    if mode.lower() not in MODES:
        raise UserError(
            f"WANDB_MODE={mode}: unknown{nearest(mode, MODES)}; use online, offline or disabled"
        )
    return MODES[mode.lower()]


def has_key() -> bool:
    """Whether W&B would find an API key without asking."""
    if variable("WANDB_API_KEY") or variable("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    try:
        host = urlparse(variable("WANDB_BASE_URL") or CLOUD).hostname or ""
        login = netrc.netrc(os.environ.get("NETRC") or None).authenticators(host)
    # An address that is none, or bytes that are no text, are errors of their value.
    except (OSError, ValueError, netrc.NetrcParseError):
        return False
    return bool(login and login[2])


def in_sweep() -> bool:
    """Whether an agent of a W&B sweep started this process."""
    return variable("WANDB_SWEEP_ID") is not None


def run_arguments(
    settings: TrackingSettings, folder: Path, tags: tuple[str, ...], **defaults: str
) -> dict[str, Any]:
    """Arguments of ``wandb.init`` for one stage.

    Passed to ``wandb.init``, a value hides the variable of the same meaning; so what the config
    does not say is looked up here.

    Args:
        folder: of the run, in which W&B's folder lies unless ``WANDB_DIR`` names another.
        tags: beside those of ``WANDB_TAGS``.
        **defaults: ``name``, ``group`` and ``job_type`` where no variable names them.
    """
    return {
        "project": settings.project or variable("WANDB_PROJECT") or PROJECT,
        "entity": settings.entity or variable("WANDB_ENTITY"),
        "dir": variable("WANDB_DIR") or str(folder),
        "name": variable("WANDB_NAME") or defaults["name"][:LONGEST_NAME],
        "group": variable("WANDB_RUN_GROUP") or defaults["group"][:LONGEST_NAME],
        "job_type": variable("WANDB_JOB_TYPE") or defaults["job_type"],
        "notes": variable("WANDB_NOTES"),
        "tags": all_tags(tags),
    }


def all_tags(tags: tuple[str, ...]) -> list[str]:
    """Those of ``WANDB_TAGS``, then ``tags``; each once, as long as W&B allows."""
    return list(dict.fromkeys(tag[:LONGEST_TAG] for tag in (*_tags_of_environment(), *tags) if tag))


def tidy_environment() -> None:
    """Remove what W&B refuses though it says nothing: empty variables and empty tags."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        if variable(name) is None:
            del os.environ[name]
    if tags := _tags_of_environment():
        os.environ["WANDB_TAGS"] = ",".join(tag[:LONGEST_TAG] for tag in tags)
    else:
        os.environ.pop("WANDB_TAGS", None)


def _tags_of_environment() -> list[str]:
    tags = (tag.strip() for tag in (variable("WANDB_TAGS") or "").split(","))
    return [tag for tag in tags if tag]


def variable(name: str) -> str | None:
    """An environment variable; set to nothing, it says nothing."""
    return os.environ.get(name, "").strip() or None
