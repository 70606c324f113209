"""Connect to a Ray cluster, or start one on this machine; what its nodes have."""

import importlib.util
import logging
import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ssdistill.chain.executors.nodes import facts, node_problem, token_in
from ssdistill.errors import UserError, one_line
from ssdistill.settings.plugins import variables_of_imports
from ssdistill.train.settings import DeviceSettings

LOCAL = "ray"
"""The value of ``--on`` for a cluster on this machine, or the one that ``RAY_ADDRESS`` names."""
CLIENT = "ray://"
SECONDS_TO_ANSWER = 5.0
SECONDS_TO_BE_HEALTHY = 30.0
SECONDS_TO_LOOK = 120.0
"""A node that was just started imports torch from a cold disk."""
OBJECT_STORE_BYTES = 100 * 2**20
"""For a cluster of our own: stages pass files to each other, not objects."""
GB = 10**9
TOKEN = "a token (RAY_AUTH_MODE=token sends that of ~/.ray/auth_token)"


@dataclass(frozen=True)
class Node:
    """A node of the cluster.

    Attributes:
        identifier: of Ray.
        name: host name, or address where several nodes have the same.
        cpus, gpus: in all.
        memory: bytes that tasks may reserve.
    """

    identifier: str
    name: str
    cpus: int
    gpus: float
    memory: float


@dataclass(frozen=True)
class Reserved:
    """What a stage reserves on each of its nodes: CPU cores, GPUs, bytes of main memory."""

    cpus: int
    gpus: float
    memory: float
    nodes: int = 1

    def fits(self, node: Node) -> bool:
        """Return whether the node, when nothing else runs there, has that much."""
        return (
            self.cpus <= node.cpus and self.gpus <= node.gpus and self.memory <= node.memory
        )  # fmt: skip


def parse_address(where: str) -> str | None:
    """Return the address of a cluster, or None for one to be started here.

    Args:
        where: ``ray``, ``ray://host:port`` or ``host:port``.

    Raises:
        UserError: it is none of these.
    """
    if where == LOCAL:
        return os.environ.get("RAY_ADDRESS") or None
    host, colon, port = where.removeprefix(CLIENT).rpartition(":")
    if not (colon and host and port.isdecimal() and int(port) < 2**16) or "/" in host:
        raise UserError(f"--on {where}: expected ray, ray://host:port or host:port")
    return where


def require_ray() -> None:
    """Make sure that Ray can be imported.

    Raises:
        UserError: it is not installed.
    """
    if importlib.util.find_spec("ray") is None:
        raise UserError("--on requires ray, which is not installed: pip install 'ssdistill[ray]'")


def check_address(address: str) -> None:
    """Make sure that somebody answers there: Ray itself would wait for a minute.

    Raises:
        UserError: nobody does.
    """
    if ("://" in address and not address.startswith(CLIENT)) or ":" not in address:
        return  # `auto`, or of a kind that only Ray knows
    host, _, port = address.removeprefix(CLIENT).rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=SECONDS_TO_ANSWER).close()
    except (OSError, ValueError) as error:
        raise UserError(
            f"--on {address}: nobody answers there ({one_line(error)}); start a cluster with "
            "`ray start --head`, or use --on ray for this machine alone"
        ) from error


def connect(address: str | None) -> None:
    """Connect to the cluster at ``address``, or start one on this machine.

    Raises:
        UserError: it refuses, or what answers is no cluster.
    """
    import ray

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # What is said of variables that we do not set.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    logging.getLogger("ray").setLevel(logging.ERROR)
    options: dict[str, Any] = {"log_to_driver": False, "configure_logging": False}
    if variables := variables_of_imports():
        # Before a worker is sent anything that only these packages can read.
        options["runtime_env"] = {"env_vars": variables}
    if address is None:
        options |= {
            "address": "local",
            "include_dashboard": False,
            "object_store_memory": OBJECT_STORE_BYTES,
        }
    else:
        options |= {"address": address}
        if not address.startswith(CLIENT):
            _check_health(address)
    try:
        ray.init(**options)
    except Exception as error:  # of a dozen kinds, by what is wrong with the cluster
        where = address or LOCAL
        hint = f"; check that it does not require {TOKEN}" if address else ""
        raise UserError(f"--on {where}: {one_line(error)}{hint}") from error


def _check_health(address: str) -> None:
    """Ask the cluster in a process of its own: one that something else answers waits forever."""
    command = [sys.executable, "-m", "ray.scripts.scripts", "health-check", "--address", address]
    try:
        done = subprocess.run(
            command, capture_output=True, timeout=SECONDS_TO_BE_HEALTHY, check=False
        )
        healthy = done.returncode == 0
    except subprocess.TimeoutExpired:
        healthy = False
    if not healthy:
        raise UserError(
            f"--on {address}: what answers there is no Ray cluster, or one of another version, or "
            f"requires {TOKEN}; the port is that of `ray start --head --port`, or use ray://host:10001"
        )


def alive_nodes() -> list[Node]:
    """Return the nodes that can run stages, the largest first."""
    import ray

    entries = [entry for entry in ray.nodes() if entry["Alive"]]
    hosts = [entry["NodeManagerHostname"] for entry in entries]
    nodes = []
    for entry, host in zip(entries, hosts, strict=True):
        resources = entry["Resources"]
        if resources.get("CPU", 0) < 1:
            continue
        name = host if hosts.count(host) == 1 else f"{host}/{entry['NodeID'][:6]}"
        gpus, memory = resources.get("GPU", 0), resources.get("memory", 0)
        nodes.append(Node(entry["NodeID"], name, int(resources["CPU"]), gpus, memory))
    return sorted(nodes, key=lambda node: (-node.cpus, node.name, node.identifier))


def check_nodes(nodes: Sequence[Node], root: Path | None) -> None:
    """Look, on every node, for other versions and for the runs folder.

    Args:
        root: None for a remote one, which the nodes do not share.

    Raises:
        UserError: what is wrong with which node.
    """
    import ray
    from ray import exceptions

    look = ray.remote(node_problem)
    with token_in(root) if root else nullcontext() as token:
        looks = [
            look.options(num_cpus=0, max_retries=0, scheduling_strategy=node_affinity(node)).remote(
                token and str(token.absolute()), facts()
            )
            for node in nodes
        ]
        until = time.monotonic() + SECONDS_TO_LOOK
        for node, answer in zip(nodes, looks, strict=True):
            try:
                problem = ray.get(answer, timeout=max(1.0, until - time.monotonic()))
            except exceptions.GetTimeoutError:
                problem = f"does not answer within {SECONDS_TO_LOOK:.0f} s; restart Ray there"
            except exceptions.RayError as error:
                problem = _node_problem(error)
            if problem:
                raise UserError(f"node {node.name} {problem}")


def _node_problem(error: Exception) -> str:
    if "No module named" in str(error) or "no attribute" in str(error):
        return "has no ssdistill, or another version; install the same version on every node"
    return f"cannot be used ({one_line(error)})"


def node_affinity(node: Node) -> Any:
    """Return Ray's scheduling strategy for one node."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return NodeAffinitySchedulingStrategy(node.identifier, soft=False)


def here() -> Any:
    """Return Ray's scheduling strategy for the node that this process is connected to."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)


def reserved_by(device: DeviceSettings, nodes: Sequence[Node], processes: int = 1) -> Reserved:
    """Return what a stage reserves, on as few nodes as can be.

    Args:
        processes: how many share it, in equal parts on every node.

    Raises:
        UserError: the nodes do not have that much.
    """
    resources, gpus = device.resources, device.resources.gpus
    if gpus is None:
        some = any(node.gpus for node in nodes)
        gpus = float(some if device.accelerator == "auto" else device.accelerator != "cpu")
    each = {"cpus": resources.cpus, "gpus": gpus, "memory": (resources.memory or 0) * GB}
    counts = [n for n in range(1, processes + 1) if processes % n == 0]
    if device.num_nodes > 1 and processes > 1:
        counts = [device.num_nodes]
    for count in counts:
        total = {name: processes // count * amount for name, amount in each.items()}
        reserved = Reserved(int(total["cpus"]), total["gpus"], total["memory"], count)
        if sum(reserved.fits(node) for node in nodes) >= count:
            return reserved
    raise UserError(_excess(each, nodes, processes, device.num_nodes))


def _excess(each: Mapping[str, float], nodes: Sequence[Node], processes: int, wanted: int) -> str:
    for name, amount in each.items():
        most = max((getattr(node, name) for node in nodes), default=0)
        if amount > most:
            unit = GB if name == "memory" else 1
            return (
                f"device.resources.{name}={amount / unit:g}: no node has more than "
                f"{most / unit:g}; lower it"
            )
    if processes > 1 and wanted > len(nodes):
        return f"device.num_nodes={wanted}: the cluster has fewer nodes: {len(nodes)}; lower it"
    if processes > 1:
        return (
            f"device.devices: {processes} processes in equal parts, each with what "
            f"device.resources reserves, exceed the nodes of the cluster ({len(nodes)}); lower "
            "one of them"
        )
    return "device.resources: no node has that much of everything; lower them"
