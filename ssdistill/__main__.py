"""``python -m ssdistill`` is the ``ssdistill`` command."""

import sys

from ssdistill.commands.main import main

if __name__ == "__main__":
    sys.exit(main())
