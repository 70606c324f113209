"""Values inside a module that no submodule returns, by the names that torch.fx gives them.

What a module does is traced once for training and once for evaluation, with the names of
``torchvision.models.feature_extraction.get_graph_node_names``: ``layer1.0.add`` is the first sum
in ``layer1.0``. Parameters and submodules stay those of the module.
"""

from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor, nn
from torch.fx import Graph, Interpreter, Node
from torchvision.models.feature_extraction import NodePathTracer

from ssdistill.errors import UserError, one_line


class Operations:
    """The operations of a module.

    Args:
        module: used, not copied.
        whole: names of its submodules that are called as they are, so that hooks on them work;
            operations inside them have no name.
    """

    def __init__(self, module: nn.Module, whole: Collection[str] = ()):
        self.module, self.whole = module, frozenset(whole)
        self._traced: dict[bool, tuple[Graph, dict[str, Node]]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_traced": {}}  # a graph is traced where it is used

    def names(self) -> list[str]:
        """Names of all operations of both training and evaluation, in their order.

        Raises:
            UserError: torch.fx cannot trace the module.
        """
        modes = {module: module.training for module in self.module.modules()}
        try:
            self.module.train()
            trained = self._of_mode()[1]
            self.module.eval()
            return [name for name in self._of_mode()[1] if name in trained]
        finally:
            for module, mode in modes.items():
                module.training = mode

    def run(self, x_BCHW: Tensor, names: Collection[str]) -> tuple[Any, dict[str, Any]]:
        """What the module returns for images, and the values of operations by name."""
        graph, nodes = self._of_mode()
        catching = _Catching(self.module, graph, {nodes[name]: name for name in names})
        return catching.run(x_BCHW), catching.caught

    def _of_mode(self) -> tuple[Graph, dict[str, Node]]:
        mode = self.module.training
        if mode not in self._traced:
            self._traced[mode] = _traced(self.module, self.whole)
        return self._traced[mode]


class _Tracer(NodePathTracer):
    def __init__(self, whole: Collection[str]):
        super().__init__()
        self.whole = whole

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        is_whole = module_qualified_name in self.whole
        return is_whole or super().is_leaf_module(m, module_qualified_name)


class _Catching(Interpreter):
    def __init__(self, module: nn.Module, graph: Graph, wanted: Mapping[Node, str]):
        super().__init__(module, graph=graph)
        self.wanted, self.caught = wanted, {}

    def run_node(self, n: Node) -> Any:
        value = super().run_node(n)
        if n in self.wanted:
            self.caught[self.wanted[n]] = copied(value)
        return value


def copied(value: Any) -> Any:
    """A tensor, or the first of several, as it is now, whatever is done to it in place later."""
    if isinstance(value, tuple | list) and value and isinstance(value[0], Tensor):
        return value[0].clone()
    return value.clone() if isinstance(value, Tensor) else value


def _traced(module: nn.Module, whole: Collection[str]) -> tuple[Graph, dict[str, Node]]:
    tracer = _Tracer(whole)
    try:
        graph = tracer.trace(module)
    except Exception as error:  # of the module's own code, given a placeholder of no shape
        raise UserError(
            f"torch.fx cannot follow what {type(module).__name__} does ({one_line(error)})"
        ) from error
    return graph, {name: node for node, name in tracer.node_to_qualname.items()}
