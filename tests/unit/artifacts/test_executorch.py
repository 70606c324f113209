import subprocess
import sys

import pytest
import torch
from torch import nn

pytest.importorskip("executorch")

from ssdistill.artifacts.runtimes.executorch import Executorch
from ssdistill.errors import UserError
from ssdistill.models.wrapped import Wrapped


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.out = nn.Conv2d(3, 4, 3), nn.Linear(4, 5)

    def forward(self, x_BCHW):
        return self.out(self.conv(x_BCHW).relu().mean((2, 3)))


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return Wrapped(Small().eval(), torch.rand(2, 3, 8, 8))


@pytest.fixture(scope="module")
def path(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("pte") / "model.pte"
    Executorch(most=4).write(model, path)
    return path


@torch.no_grad()
def test_more_than_it_is_planned_for_is_run_in_slices(model, path):
    found = Executorch.opens(path, 5)
    x_BCHW = torch.rand(11, 3, 8, 8)
    calls = []
    method = found.method
    found.method = type("Spy", (), {
        "execute": lambda self, x: (calls.append(len(x[0])), method.execute(x))[1]
    })()  # fmt: skip
    assert torch.allclose(found(x_BCHW).embedding_BD, model(x_BCHW).embedding_BD, atol=1e-5)
    assert calls == [4, 4, 3]


def test_the_layers_are_left_to_xnnpack(path):
    assert b"XnnpackBackend" in path.read_bytes()


@torch.no_grad()
def test_two_files_with_other_numbers_of_threads_take_turns(model, path):
    one, two = Executorch.opens(path, 5), Executorch.opens(path, 5)
    one.session_threads, two.session_threads = 1, 2
    x_BCHW = torch.rand(3, 3, 8, 8)
    expected_BD = model(x_BCHW).embedding_BD
    for found in (one, two, one, one, two):
        assert torch.allclose(found(x_BCHW).embedding_BD, expected_BD, atol=1e-5)


def test_writing_and_running_stay_quiet(model, path, tmp_path, capfd):
    Executorch(most=4).write(model, tmp_path / "model.pte")
    Executorch.opens(tmp_path / "model.pte", 5)(torch.rand(1, 3, 8, 8))
    assert capfd.readouterr() == ("", "")


class Spectrum(nn.Linear):
    def forward(self, x_BCHW):
        return super().forward(torch.linalg.svdvals(x_BCHW).mean(1))


def test_an_operator_it_has_not_is_named(tmp_path):
    model = Wrapped(Spectrum(8, 2), torch.rand(2, 3, 8, 8))
    with pytest.raises(UserError, match=r"(?i)svd") as caught:
        Executorch().write(model, tmp_path / "model.pte")
    assert "\n" not in str(caught.value)


def test_what_is_no_program_is_refused_before_the_library_is_imported(tmp_path):
    path = tmp_path / "model.pte"
    path.write_bytes(b"\0" * 4 + b"NOPE" + b"\0" * 64)
    code = (
        "import sys\n"
        "from ssdistill.errors import UserError\n"
        "from ssdistill.artifacts.runtimes.executorch import PteModel\n"
        "try:\n    PteModel(sys.argv[1], 5)\n"
        "except UserError as error:\n    print(error, 'executorch' in sys.modules)"
    )
    command = [sys.executable, "-c", code, str(path)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "not an ExecuTorch program" in said and said.endswith("False\n")
