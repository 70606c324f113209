"""What is said of the channels of images."""

from types import SimpleNamespace

import pytest

from ssdistill.data.displaying import channels_text


@pytest.mark.parametrize(
    ("count", "names", "text"),
    [
        (3, None, ""),
        (3, ("red", "green", "blue"), ", 3 channels (red, green, blue)"),
        (1, None, ", 1 channel"),
        (5, None, ", 5 channels"),
    ],
)
def test_channels_are_counted_and_named_unless_they_are_plain_rgb(count, names, text):
    assert channels_text(SimpleNamespace(mean=(0.5,) * count, channel_names=names)) == text
