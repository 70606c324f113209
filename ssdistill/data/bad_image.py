"""Why a file gives no image."""


class BadImage(Exception):
    """A file that gives no image; ``reason`` is a short phrase without the file's name."""

    def __init__(self, reason: str):
        super().__init__(reason)
        self.reason = reason
