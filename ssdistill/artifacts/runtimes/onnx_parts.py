"""Checks of the external files that an ONNX model refers to."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ssdistill.artifacts.description import REMEDY
from ssdistill.errors import UserError, no_file

CONTEXT = "EPContext"
"""Operator that holds, or names, a library's own compiled form of a network."""


def check_onnx(path: Path) -> None:
    """Check that a file is an ONNX model and that its tensors lie in it or beside it.

    Raises:
        UserError: no ONNX model; tensors in a file outside of its folder, also by way of symbolic
            links, or in one that is missing or too short; an operator that is compiled code.
    """
    import onnx

    try:
        # Not by its path: a suffix could make it another format, and outside tensors be read.
        model = onnx.load_model_from_string(path.read_bytes())
    except Exception as error:  # protobuf's, which shares no base class with onnx's
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"ONNX Runtime cannot open {path}: not an ONNX model ({reason}); {REMEDY}"
        ) from error
    if not model.graph.node and not model.graph.output:
        raise UserError(
            f"ONNX Runtime cannot open {path}: not an ONNX model (it has no graph); {REMEDY}"
        )
    for node, tensors in _nodes_and_tensors(model):
        if node is not None and node.op_type == CONTEXT:
            raise UserError(
                f"refused to open {path}: operator {CONTEXT} '{node.name}' is compiled code; "
                "export the model without it"
            )
        for tensor in tensors:
            if tensor.data_location == onnx.TensorProto.EXTERNAL:
                _check_external(path, tensor)


def _nodes_and_tensors(model: Any) -> Iterator[tuple[Any, list[Any]]]:
    """Every node of every graph, and the tensors of each; (None, tensors) for those of a graph."""
    graphs = [model.graph]
    graphs += [part for info in model.training_info
               for part in (info.initialization, info.algorithm)]  # fmt: skip
    nodes = [node for function in model.functions for node in function.node]
    while graphs:
        graph = graphs.pop()
        sparse = [part for one in graph.sparse_initializer for part in (one.values, one.indices)]
        yield None, [*graph.initializer, *sparse]
        nodes += graph.node
        while nodes:
            node = nodes.pop()
            tensors = []
            for one in node.attribute:
                tensors += [one.t, *one.tensors]
                both = [one.sparse_tensor, *one.sparse_tensors]
                tensors += [part for sparse in both for part in (sparse.values, sparse.indices)]
                graphs += [part for part in (one.g, *one.graphs) if part.node or part.initializer]
            yield node, tensors


def _check_external(path: Path, tensor: Any) -> None:
    facts = {entry.key: entry.value for entry in tensor.external_data}
    location = facts.get("location", "")
    folder = path.parent.resolve()
    try:
        file = (folder / location).resolve()
        inside = bool(location) and folder in file.parents
        size = file.stat().st_size if inside and file.is_file() else -1
        offset, length = int(facts.get("offset", 0)), int(facts.get("length", 0))
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(
            f"refused to open {path}: tensor '{tensor.name}' is stored in {location!r:.80}, "
            f"which is not a path in the model's folder ({error})"
        ) from error
    if not inside:
        raise UserError(
            f"refused to open {path}: tensor '{tensor.name}' is stored in {location!r:.80}, "
            "outside its folder; put the file itself, not a link, beside the model"
        )
    if size < 0:
        holds = f", which holds tensor '{tensor.name}' of {path.name}"
        raise UserError(no_file(file, "copy it again", holds))
    if min(offset, length) < 0 or offset + length > size:
        raise UserError(
            f"{file} is too short for tensor '{tensor.name}' of {path.name}: copy it again"
        )
