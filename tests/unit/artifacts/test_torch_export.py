import io
import json
import pickle
import zipfile

import pytest
import torch
from torch import nn

from ssdistill.artifacts.runtimes.exported_archive import harmless
from ssdistill.artifacts.runtimes.torch_export import ExportedModel, TorchExport
from ssdistill.artifacts.runtimes.tracing import _reason, ready, trace
from ssdistill.errors import UserError
from ssdistill.models.wrapped import Wrapped


class Secret(nn.Module):
    """The mean image through a linear layer, over images nobody else may see."""

    def __init__(self):
        super().__init__()
        self.out = nn.Linear(3, 5)

    def forward(self, x_BCHW):
        return self.out(x_BCHW.mean((2, 3)))


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Wrapped(Secret(), torch.full((2, 3, 8, 8), 0.123456789))


@pytest.fixture
def path(model, tmp_path):
    TorchExport().write(model, tmp_path / "model.exported.pt2")
    return tmp_path / "model.exported.pt2"


def test_what_is_not_used_is_not_in_the_file(tmp_path):
    sizes = []
    for width in (2, 9999):
        net = Secret()
        net.unused = nn.Linear(3, width)
        TorchExport().write(Wrapped(net, torch.rand(2, 3, 8, 8)), tmp_path / "model.pt2")
        sizes.append((tmp_path / "model.pt2").stat().st_size)
    assert abs(sizes[0] - sizes[1]) < 100


def rewritten(path, change):
    """The same archive with ``change(name, content)`` in place of every member's content."""
    target = path.with_name("changed.pt2")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)))
    return target


def edited(name, content, suffix, old, new):
    return content.replace(old, new) if name.endswith(suffix) else content


def test_a_file_has_no_paths_no_example_and_nothing_pickled(path, model):
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    text = b"".join(members.values())
    assert b"site-packages" not in text and b".py" not in text
    assert model.inputs[0, 0, 0, :2].numpy().tobytes() not in text
    assert not any(content.startswith(b"PK") for content in members.values())


def test_a_copy_with_other_names_inside_still_opens(path):
    same = rewritten(path, lambda name, content: content)
    assert ExportedModel(same, 5)(torch.rand(1, 3, 8, 8)).embedding_BD.shape == (1, 5)


class Mark:
    ran = False

    def __reduce__(self):
        return setattr, (Mark, "ran", True)


@pytest.mark.parametrize("place", ["weights", "sample_inputs", "custom"])
def test_pickles_are_refused_unread(path, place):
    torn = io.BytesIO()
    torch.save(Mark(), torn)
    Mark.ran = False

    def change(name, content):
        if place == "weights" and name.endswith("model_weights_config.json"):
            content = content.replace(b'"use_pickle": false', b'"use_pickle": true')
        if place == "weights" and "data/weights/weight_" in name:
            content = torn.getvalue()
        if place == "sample_inputs" and "sample_inputs" in name:
            content = torn.getvalue()
        return content

    changed = rewritten(path, change)
    if place == "custom":
        with zipfile.ZipFile(changed, "a") as archive:
            archive.writestr("archive/data/constants/opaque_obj_0", pickle.dumps(Mark()))
    with pytest.raises(UserError, match=r"refused to open .* would be executed on opening"):
        ExportedModel(changed, 5)
    assert not Mark.ran


@pytest.mark.parametrize("key", ["expr_str", "range_constraints", "guards_code"])
def test_expressions_that_are_code_are_refused(path, key):
    code = "__import__('builtins').exit()"

    def change(name, content):
        if not name.endswith("models/model.json"):
            return content
        program = json.loads(content)
        if key == "guards_code":
            program[key] = [code]
        elif key == "range_constraints":
            program[key] = {code: {"min_val": 1, "max_val": 2}}
        else:
            size = program["graph_module"]["graph"]["tensor_values"]["inputs"]["sizes"][0]
            size["as_expr"]["expr_str"] = code
        return json.dumps(program)

    with pytest.raises(UserError, match="would be executed on opening"):
        ExportedModel(rewritten(path, change), 5)


@pytest.mark.parametrize("fine", ["s77", "Symbol('s77', positive=True, integer=True)", "2*s0 + 1",
                                  "FloorDiv(s1, 2)", "s0**2 + s1 ** 3"])  # fmt: skip
def test_sizes_are_harmless(fine):
    assert harmless(fine)


@pytest.mark.parametrize("bad", ["exit()", "s77.__class__", "().__class__", "os", "exec(chr(1))",
                                 "Symbol('exit()')", 7, "ｅxit()", "9**9**9",
                                 "s0**9**9", "s0**99", "9" * 20, "s0 + " * 999 + "s0"])  # fmt: skip
def test_code_is_not(bad):
    assert not harmless(bad)


def test_threads_are_those_of_the_session_and_put_back(path):
    found, seen = ExportedModel(path, 5), []
    module = found.module
    found.module = lambda x: (seen.append(torch.get_num_threads()), module(x))[1]
    before = torch.get_num_threads()
    for threads in (3, 0):
        found.session_threads = threads
        found(torch.rand(1, 3, 8, 8))
    assert seen == [3, before] and torch.get_num_threads() == before


class OnlyTwo(Secret):
    def forward(self, x_BCHW):
        return self.out(x_BCHW.mean((2, 3)).view(2, 3))


def test_a_network_for_one_number_of_inputs_is_said_to_be_one():
    model = ready(Wrapped(nn.Sequential(OnlyTwo()), torch.rand(2, 3, 8, 8)))
    with pytest.raises(UserError, match="does not accept every batch size"):
        trace(model, "torch.export")


class Broken(Secret):
    def forward(self, x_BCHW):
        if torch.compiler.is_exporting():
            raise ValueError("no such luck\nmore")
        return super().forward(x_BCHW)


def test_what_the_model_itself_raises_is_passed_on_with_its_place():
    model = ready(Wrapped(nn.ModuleDict({"deep": Broken()}), torch.rand(2, 3, 8, 8),
                          embed=lambda net, x: net["deep"](x)))  # fmt: skip
    with pytest.raises(UserError, match=r"torch.export \('deep'\): no such luck$"):
        trace(model, "torch.export")


def test_the_reason_of_a_refusal_is_the_first_line_that_says_something():
    assert _reason(ValueError("\n   \n  too wide  \n and long")) == "too wide"
    assert _reason(ValueError(" \n")) == "ValueError"
