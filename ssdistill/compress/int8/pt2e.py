"""int8 by quantizers of exported programs (PT2E of torchao), for PyTorch and for ExecuTorch."""

from collections import Counter
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import GraphModule

from ssdistill.artifacts.runtimes import Runtime, RuntimeModel, on_arm
from ssdistill.artifacts.runtimes.aot_inductor import AotInductor, compile_program
from ssdistill.artifacts.runtimes.executorch import MOST, Executorch, write_pte
from ssdistill.artifacts.runtimes.torch_export import TorchExport, save_program
from ssdistill.artifacts.runtimes.tracing import explain, quiet, ready, trace
from ssdistill.errors import UserError
from ssdistill.models.model import Model

LARGEST_BATCH = 32
Target = Literal["torchao", "executorch"]


def quantize_pt2e(
    model: Model, calibration_inputs: Tensor, path: str | Path, target: Target = "torchao"
) -> RuntimeModel:
    """Static int8: activations per tensor, weights per output channel.

    ``torchao`` quantizes what PyTorch's compiler can do in int8 on this kind of processor. Where
    ``path`` ends in ``.aoti.pt2`` the network is compiled: fast, for processors like this one.
    Otherwise the file is the exported program: a quarter of the float one and good for any
    machine, but PyTorch runs it as floats between roundings, slower than the float network.
    ``executorch`` quantizes for XNNPACK.

    Jacob et al., CVPR 2018, arXiv:1712.05877; PyTorch, "PyTorch 2 Export Quantization".

    Args:
        model: left as it is.
        calibration_inputs: unlabeled inputs (N, …), as the model takes them, from which the
            ranges of activations are taken.
        path: the file to write.

    Returns:
        the file, opened.

    Raises:
        UserError: torchao or ExecuTorch is not installed, no C++ compiler where one is required,
            the model cannot be exported, or nothing of it became int8.
    """
    path, model, runtime = Path(path), ready(model), runtime_of(path, target)
    require_torchao()
    runtime.require()
    program = int8_program(model, calibration_inputs, target)
    if runtime is Executorch:
        write_pte(program, model, path)
    elif runtime is TorchExport:
        save_program(program, path)
    else:
        try:
            compile_program(program, path)
        except Exception as error:  # inductor, or the compiler it calls
            raise explain(error, model, "AOTInductor") from error
    return runtime.opens(path, model.embed_dim, getattr(model, "spec", None))


def runtime_of(path: str | Path, target: Target) -> type[Runtime]:
    """What runs the file that :func:`quantize_pt2e` writes to ``path``."""
    if target == "executorch":
        return Executorch
    return AotInductor if Path(path).name.endswith(".aoti.pt2") else TorchExport


def require_torchao() -> None:
    """Make sure that torchao is installed.

    Raises:
        UserError: it is not; the extra to install is named.
    """
    try:
        with quiet():
            import torchao.quantization.pt2e.quantize_pt2e  # noqa: F401
    except ImportError as error:
        remedy = "pip install 'ssdistill[torchao]'"
        raise UserError(
            f"int8 of exported programs requires torchao ({error}): {remedy}"
        ) from error


def int8_program(model: Model, calibration_inputs: Tensor, target: Target) -> ExportedProgram:
    """The quantized graph of ``model`` (as :func:`ready` makes it), without its float weights.

    Raises:
        UserError: the model cannot be exported, or nothing of it became int8.
    """
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    most = MOST if target == "executorch" else None
    program = trace(model, "int8", most)
    try:
        with quiet(), torch.no_grad():
            graph = cast("GraphModule", program.module())  # which torch declares as any module
            prepared = prepare_pt2e(_with_sources(graph), _quantizer(target))
            for part in calibration_inputs.cpu().split(LARGEST_BATCH):
                prepared(part)
            converted = convert_pt2e(prepared)
    except Exception as error:  # quantizers raise anything
        raise explain(error, model, "int8") from error
    if not min(count_int8(converted).values()):
        raise UserError(f"quantize: no layer of '{model.name}' became int8; choose another runtime")
    # Conversion leaves the float weights, which trace() strips.
    return trace(model, "int8", most, graph=converted)


def _with_sources(graph: GraphModule) -> GraphModule:
    """Note on each node the layer that it comes from, by which quantizers find their patterns.

    The exporter of torch 2.11 notes the names of layers alone, which its matcher does not read.
    """
    for node in graph.graph.nodes:
        layers = node.meta.get("nn_module_stack")
        if node.op != "call_function" or not layers or "source_fn_stack" in node.meta:
            continue
        path, layer_type = list(layers.values())[-1]
        layer = _torch_layer(layer_type)
        if layer is not None:
            node.meta["source_fn_stack"] = [(path, layer)]
    return graph


def _torch_layer(name: str | type) -> type | None:
    """The class of PyTorch's layer called ``torch.nn.modules.<…>``; None for any other."""
    if isinstance(name, type):
        return name
    if not name.startswith("torch.nn.modules."):
        return None
    return getattr(nn, name.rpartition(".")[2], None)


def _quantizer(target: Target) -> Any:
    if target == "executorch":
        from executorch.backends.xnnpack.quantizer import xnnpack_quantizer as xnnpack

        config = xnnpack.get_symmetric_quantization_config(is_per_channel=True)
        return xnnpack.XNNPACKQuantizer().set_global(config)
    if on_arm():
        from torchao.quantization.pt2e.quantizer import arm_inductor_quantizer as arm

        config = arm.get_default_arm_inductor_quantization_config()
        return arm.ArmInductorQuantizer().set_global(config)
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    config = x86.get_default_x86_inductor_quantization_config()
    return x86.X86InductorQuantizer().set_global(config)


def count_int8(graph: GraphModule) -> dict[str, int]:
    """How many roundings of activations and int8 weights a quantized graph has."""
    names = Counter(str(node.target) for node in graph.graph.nodes if node.op == "call_function")
    weights = [tensor for tensor in graph.state_dict().values() if tensor.dtype == torch.int8]
    return {
        "quantize_nodes": sum(n for name, n in names.items() if "quantize_per_tensor" in name
                              and "dequantize" not in name),
        "int8_weights": len(weights),
    }  # fmt: skip
