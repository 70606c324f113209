"""The error for files that yield no image."""


class BadImage(Exception):
    """Raised for a file that yields no image; ``reason`` is a short phrase without its name."""

    def __init__(self, reason: str):
        super().__init__(reason)
        self.reason = reason
