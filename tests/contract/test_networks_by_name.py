"""Networks that configs can name pass the checks for those of plug-ins."""

import pytest
from torch import nn

from ssdistill.models.networks import NETWORKS, network
from ssdistill.testing import NETWORK_CHECKS, check_network
from ssdistill.testing.networks import BUILDER, NamedNetwork

RESNET = {"layers": (1, 1, 0, 0), "channels": (8, 16, 16, 16)}


class Cells(nn.Module):
    """Two convolutions; any number of channels."""

    def __init__(self, width: int = 8, in_chans: int = 3):
        super().__init__()
        self.first = nn.Conv2d(in_chans, width, 3, 2, 1)
        self.body = nn.Sequential(nn.ReLU(), nn.Conv2d(width, 2 * width, 3, 2, 1), nn.ReLU())

    def forward(self, x_BCHW):
        return self.body(self.first(x_BCHW))


@pytest.mark.parametrize("name", NETWORK_CHECKS)
def test_a_network_of_timm(name):
    NETWORK_CHECKS[name](NamedNetwork("resnet10t", RESNET))


def test_a_class_is_checked_without_a_name_which_is_gone_afterwards(plugins):
    check_network(Cells, width=4)
    assert BUILDER not in NETWORKS


def test_a_registered_network_is_checked_with_its_taps(plugins):
    network("cells_of_a_test", taps={"early": "first", "late": "body.2"})(Cells)
    check_network("cells_of_a_test", width=4)
    check_network(Cells, width=4)


class Broken(Cells):
    """Subtracts the mean of the batch, and has a layer that nothing uses."""

    def __init__(self, width: int = 8):
        super().__init__(width)
        self.unused = nn.Linear(3, 3)

    def forward(self, x_BCHW):
        map_BCHW = super().forward(x_BCHW)
        return (map_BCHW - map_BCHW.mean(0, keepdim=True)).mean((2, 3))


def test_all_that_is_wrong_is_listed(plugins):
    with pytest.raises(AssertionError) as failed:
        check_network(Broken)
    first, *faults = str(failed.value).splitlines()
    assert first == "Broken (network) fails 2 of 9 checks:"
    assert faults == [
        "  single_images: the embedding of an image changes with the others of its batch",
        "  gradients: no gradient reaches net.unused.weight; freeze it or remove it",
    ]
