"""The error for unreadable images."""


class BadImage(Exception):
    """An image cannot be read; ``reason`` is a short phrase that does not repeat its name."""

    def __init__(self, reason: str):
        super().__init__(reason)
        self.reason = reason
