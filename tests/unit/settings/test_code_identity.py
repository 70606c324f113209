"""What tells functions, classes and modules apart."""

import importlib
import sys
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from ssdistill.settings.code_identity import identity_of

WIDTH = 8


class Net(nn.Module):
    def __init__(self, pool, width=4):
        super().__init__()
        self.conv, self.pool = nn.Conv2d(3, width, 3), pool

    def forward(self, x_BCHW):
        x_BCHW = self.conv(x_BCHW)
        return x_BCHW.mean((2, 3)) if self.pool == "mean" else x_BCHW.amax((2, 3))


class Maker:
    def __init__(self, pool):
        self.pool = pool

    def __call__(self):
        return Net(self.pool)


def capturing(value):
    return lambda: value


def inner(width):
    return nn.Linear(width, width)


def by_global():
    return inner(WIDTH)


DIFFERENT = {
    "attributes": (Net("mean"), Net("max")),
    "attributes of submodules": (nn.Sequential(Net("mean")), nn.Sequential(Net("max"))),
    "widths": (Net("mean", 4), Net("mean", 8)),
    "captured numbers": (capturing(8), capturing(16)),
    "captured arrays": (capturing(np.zeros(3)), capturing(np.ones(3))),
    "captured tensors": (capturing(torch.zeros(3)), capturing(torch.zeros(4))),
    "captured functions": (capturing(capturing(1)), capturing(capturing(2))),
    "captured sets": (capturing({"a", "b"}), capturing({"a", "c"})),
    "arguments": (partial(Net, "mean"), partial(Net, "max")),
    "objects": (Maker("mean"), Maker("max")),
    "methods of objects": (Maker("mean").__call__, Maker("max").__call__),
    "classes": (Net, Maker),
    "lambdas of a line": (lambda x: x[0], lambda x: x[1]),
}


@pytest.mark.parametrize("what", DIFFERENT)
def test_what_computes_something_else_is_another(what):
    one, two = DIFFERENT[what]
    assert identity_of(one) != identity_of(two)


def test_what_is_the_same_is_the_same():
    first, second = Net("mean"), Net("mean").eval()  # with other weights
    assert identity_of(first) == identity_of(second)
    for make in (lambda: capturing({"b", "a", "c"}), lambda: Maker("mean"), lambda: nn.ReLU()):
        assert identity_of(make()) == identity_of(make())


def test_a_forward_hook_computes_something_else():
    hooked = Net("mean")
    hooked.register_forward_hook(lambda module, inputs, output: 2 * output)
    assert identity_of(hooked) != identity_of(Net("mean"))


def test_what_a_function_names_counts(monkeypatch):
    before = identity_of(by_global)
    with monkeypatch.context() as patch:
        patch.setitem(globals(), "WIDTH", 16)
        assert identity_of(by_global) != before
        patch.undo()
    with monkeypatch.context() as patch:
        patch.setitem(globals(), "inner", lambda width: nn.ReLU())
        assert identity_of(by_global) != before
        patch.undo()
    assert identity_of(by_global) == before


def test_another_class_in_the_file_counts(tmp_path, monkeypatch):
    text = """
from torch import nn

class Block(nn.Module):
    def forward(self, x):
        return x + 1

class Outer(nn.Module):
    def __init__(self):
        super().__init__()
        self.block = Block()

class Unused:
    number = 1
"""
    monkeypatch.syspath_prepend(tmp_path)
    found = []
    for number, (old, new) in enumerate(
        [("", ""), ("x + 1", "x + 2"), ("number = 1", "number = 2")]
    ):
        name = f"own_blocks_{number}"
        (tmp_path / f"{name}.py").write_text(text.replace(old, new))
        importlib.invalidate_caches()
        # Under one name: that of the file is no difference here.
        module = importlib.import_module(name)
        for cls in (module.Block, module.Outer):
            cls.__module__ = "own_blocks"
        monkeypatch.setitem(sys.modules, "own_blocks", module)
        found.append(identity_of(module.Outer))
    assert found[0] != found[1] and found[0] == found[2]


def test_modules_that_hold_themselves_end():
    net = Net("mean")
    net.parts = [net]
    assert identity_of(net) != identity_of(Net("mean"))


def test_a_package_of_another_environment_is_installed(tmp_path, monkeypatch):
    folder = tmp_path / "lib" / "site-packages" / "kit_of_others"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("class Kit:\n    pass\n")
    monkeypatch.syspath_prepend(str(folder.parent))
    kit = importlib.import_module("kit_of_others")
    (folder / "__init__.py").unlink()  # its source is not looked at
    before = identity_of(capturing(kit.Kit))
    kit.Kit.more = lambda self: 1
    assert identity_of(capturing(kit.Kit)) == before
