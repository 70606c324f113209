"""Peak memory of running a saved model."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ssdistill.artifacts.files import find_artifact
from ssdistill.errors import UserError

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
RESET_PEAK = "5"
"""What makes Linux forget the highest memory use of a process so far (proc(5), clear_refs)."""


@dataclass(frozen=True)
class PeakMemory:
    """Resident memory of a process of its own, beyond what it has once everything is imported.

    Attributes:
        opening: highest while the artifact is opened: reading, checking, building the network
            or the runtime's session.
        running: highest while one batch is embedded, twice: the opened model and whatever a
            forward pass needs at its widest.
        batch_size, threads: inputs per call; threads of the runtime.
    """

    opening: int
    running: int
    batch_size: int
    threads: int


def peak_memory(
    path: str | Path,
    batch_size: int = 1,
    inputs: Tensor | None = None,
    threads: int = 1,
    trust: bool = False,
) -> PeakMemory | None:
    """Measure the memory, in bytes, added by opening and running a saved model in a new process.

    They are the kernel's count of resident pages (VmHWM). The usual ``ru_maxrss`` will not do:
    a process inherits it from the one that started it, so a large parent hides everything.
    Files that are mapped count as far as they have been read.

    Args:
        path: an artifact folder, as :func:`ssdistill.load` opens it.
        batch_size: inputs per call.
        inputs: what it is given, repeated up to ``batch_size``; by default what the encoder in
            the folder takes.
        threads: threads of PyTorch or the runtime.
        trust: as for :func:`ssdistill.load`.

    Returns:
        None where the kernel does not tell: everywhere but on Linux.

    Raises:
        UserError: the artifact cannot be opened or run.
    """
    from ssdistill.artifacts.runtimes.compiled_here import is_known_artifact

    artifact = find_artifact(path)
    if not _can_reset_peak():
        return None
    with tempfile.TemporaryDirectory() as folder:
        inputs_file = Path(folder) / "inputs.npy"
        if inputs is not None:
            np.save(inputs_file, inputs.detach().cpu().numpy())
        order = {"path": str(artifact), "batch_size": batch_size, "threads": threads}
        order["inputs"] = str(inputs_file) if inputs is not None else None
        # The fresh process must not know less of what was compiled here than this one.
        order["trust"] = trust or is_known_artifact(artifact)
        command = [sys.executable, "-m", "ssdistill.measure.memory", json.dumps(order)]
        process = subprocess.run(command, capture_output=True, text=True, check=False)
    if process.returncode:
        reason = (process.stderr.strip().splitlines() or ["its process was killed"])[-1]
        raise UserError(f"cannot measure the memory of {path}: {reason}; set measure.memory=false")
    return PeakMemory(**json.loads(process.stdout.splitlines()[-1]))


def _can_reset_peak() -> bool:
    try:
        CLEAR.write_text(RESET_PEAK)
        _status("VmHWM")
    except (OSError, KeyError):
        return False
    return True


def _status(name: str) -> int:
    """A line of the process' status, in bytes."""
    lines = dict(line.split(":", 1) for line in STATUS.read_text().splitlines() if ":" in line)
    return int(lines[name].split()[0]) * 1024


def _peak(action: Callable[[], Any], baseline: int) -> tuple[Any, int]:
    CLEAR.write_text(RESET_PEAK)
    result = action()
    return result, max(0, _status("VmHWM") - baseline)


def measure(
    path: str, batch_size: int, inputs: str | None, threads: int, trust: bool = False
) -> dict[str, int]:
    """Body of the new process of :func:`peak_memory`."""
    from ssdistill.artifacts.artifact import load
    from ssdistill.measure.latency import example
    from ssdistill.settings.registry import RUNTIMES

    torch.set_num_threads(threads)
    # What a runtime is imported for is no memory of the model's.
    folder = Path(path)
    for runtime in RUNTIMES.classes.values():
        if (folder / runtime.file).exists():
            runtime.require()
    batch = torch.from_numpy(np.load(inputs)) if inputs else None
    baseline = _status("VmRSS")
    model, opening = _peak(lambda: load(folder, trust, check_inputs=False), baseline)
    if not isinstance(model, torch.nn.Module):
        model.session_threads = threads
    x = example([model], batch_size, batch)

    @torch.inference_mode()
    def run() -> None:
        for _ in range(2):
            model(x)

    _, running = _peak(run, baseline)
    facts = {"opening": opening, "running": running}
    return facts | {"batch_size": batch_size, "threads": threads}


if __name__ == "__main__":
    try:
        print(json.dumps(measure(**json.loads(sys.argv[1]))))
    except UserError as error:
        raise SystemExit(str(error)) from None
