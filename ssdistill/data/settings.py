"""What every data source has in a config beside its own settings."""

from ssdistill.settings import Fraction, PositiveInt, Settings


class StoreSettings(Settings):
    """How a source's pictures are stored.

    Args:
        image_size: side of the stored squares in pixels; null takes the source's own default.
        max_bad: largest share of unreadable pictures that is skipped rather than refused.
    """

    image_size: PositiveInt | None = None
    max_bad: Fraction = 0.05
