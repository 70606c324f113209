"""A model as a graph of PyTorch's own operators, from which files for runtimes are written."""

import contextlib
import copy
import logging
import os
import traceback
import warnings
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch._dynamo.exc import UserError as DynamoUserError
from torch.export import ExportedProgram
from torch.fx.experimental import _config
from torch.nn.attention import SDPBackend, sdpa_kernel

from ssdistill.errors import UserError
from ssdistill.models.model import Model

LONGEST_REASON = 300


class Embedding(nn.Module):
    """Only the embedding, as a plain tensor: ``inputs`` (B, …) -> (B, embed_dim)."""

    def __init__(self, model: Model):
        super().__init__()
        self.model = model

    def forward(self, inputs: Tensor) -> Tensor:
        return self.model(inputs).embedding_BD


def ready(model: Model) -> Model:
    """Copy a model for export: on the CPU, in eval mode, without feature maps."""
    # A copy: putting back the mode of the whole would change parts that were frozen in another.
    model = copy.deepcopy(model).eval().cpu()
    # A training leaves weights in channels_last, which slows down some of the written files.
    model.to(memory_format=torch.contiguous_format)
    model.set_taps(())
    model.checks_inputs = False
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return model


def trace(
    model: Model, runtime: str, most: int | None = None, graph: nn.Module | None = None
) -> ExportedProgram:
    """The graph of ``model`` (as :func:`ready` makes it) for any number of inputs.

    Args:
        runtime: what it is for, as the message of an error calls it.
        most: most inputs at once, where the runtime needs to know.
        graph: what is traced in place of the model: a module that gives the embedding itself.

    Raises:
        UserError: the graph depends on values or on the number of inputs, or PyTorch cannot
            trace the model for another reason; the module at fault is named.
    """
    graph = Embedding(model).eval() if graph is None else graph
    try:
        with quiet(), torch.no_grad(), one_is_no_constant():
            try:
                return _traced(graph, model, most)
            except DynamoUserError:
                # From its fused kernel of masked attention torch 2.11 concludes that a batch is
                # not 1.
                with contextlib.suppress(DynamoUserError), sdpa_kernel(SDPBackend.MATH):
                    return _traced(graph, model, most)
        # PyTorch's own attention modules are traced for any batch only in the ordinary way.
        with quiet(), torch.no_grad():
            return _traced(graph, model, most)
    except Exception as error:  # tracing runs the model's own code, which may raise anything
        raise explain(error, model, runtime) from error


def _traced(graph: nn.Module, model: Model, most: int | None) -> ExportedProgram:
    program = _trace(graph, model.example(2), most)
    graph = program.module(check_guards=False)
    # Heads that are not used, inputs that were kept as an example.
    return _trace(graph, model.example(2), most) if strip(graph) else program


def _trace(graph: nn.Module, example: Tensor, most: int | None) -> ExportedProgram:
    # An example batch of 1 would be taken for a constant (torch.export specializes 0 and 1).
    sizes = ({0: torch.export.Dim("batch", min=1, max=most)},)
    return torch.export.export(graph, (example,), dynamic_shapes=sizes, strict=False)


def strip(graph: torch.fx.GraphModule) -> int:
    """Remove a graph's unused tensors; return how many elements they had."""
    graph.graph.eliminate_dead_code()
    graph.recompile()
    read, numbers = {node.target for node in graph.graph.nodes if node.op == "get_attr"}, 0
    for name, tensor in [*graph.named_parameters(), *graph.named_buffers()]:
        # The counters of batch normalization are worth no second tracing.
        if name not in read and tensor.numel() > 1:
            parent, _, leaf = name.rpartition(".")
            delattr(graph.get_submodule(parent), leaf)
            numbers += tensor.numel()
    return numbers


def one_is_no_constant() -> contextlib.AbstractContextManager[None]:
    """Keeps tracing from specializing the batch size to the example's.

    Without it a convolution that PyTorch does differently from 16 images on limits a file that
    was traced with two to 15.
    """
    # torch adds `patch` to its config modules while it is imported.
    return cast("Any", _config).patch(backed_size_oblivious=True)


def explain(error: BaseException, model: Model, runtime: str) -> UserError:
    """Summarize an exporter's error in one line that names the failing module."""
    chain = [error]
    while following := chain[-1].__cause__ or chain[-1].__context__:
        chain.append(following)
    names = {id(module): name for name, module in model.named_modules()}
    place = next(filter(None, (_innermost_module(part, names) for part in chain)), "")
    where = f" ('{place}')" if place else ""
    kinds = {cls.__name__ for part in chain for cls in type(part).__mro__}
    text = "\n".join(str(part) for part in chain)
    if "GuardOnDataDependentSymNode" in kinds or "data-dependent" in text:
        reason = "its control flow depends on the values of its input"
    elif "Constraints violated" in text or "specialized" in text:
        reason = "it does not accept every batch size from 1 up"
    else:
        reason = _reason(chain[-1])
    return UserError(f"cannot export '{model.name}' to {runtime}{where}: {reason}")


def _innermost_module(error: BaseException, names: dict[int, str]) -> str:
    """The name of the innermost module of the model whose code was running."""
    module_name = ""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        module_name = names.get(id(frame.f_locals.get("self")), "") or module_name
    return module_name.removeprefix("net.")


def _reason(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:LONGEST_REASON]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence exporters and quantizers, which narrate on stdout, in logs and in warnings."""
    names = ("", "torch.onnx", "onnxscript", "onnx_ir", "torch.export", "torch._inductor",
             "torch.fx", "torchao", "executorch")  # fmt: skip
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings(), open(os.devnull, "w") as void:
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            with contextlib.redirect_stdout(void), contextlib.redirect_stderr(void):
                yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


@contextlib.contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Set PyTorch's thread count inside the ``with`` block; 0 leaves it unchanged."""
    before = torch.get_num_threads()
    if count in (0, before):
        yield
        return
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
