"""Settings of recorded outputs of teachers."""

from ssdistill.settings import PositiveInt, Settings


class CacheSettings(Settings):
    """How much of the teachers' outputs to record.

    Args:
        views: passes over the images after which the views of an image repeat, V. The outputs for
            V draws of each view are recorded before the training, in 16-bit floats.
    """

    views: PositiveInt
