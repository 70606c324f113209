"""Print the lowest versions that setup.cfg promises, as pip's constraints."""

import re
import sys
from configparser import ConfigParser
from pathlib import Path

parser = ConfigParser()
parser.read(Path(__file__).resolve().parents[1] / "setup.cfg")
requirements = {
    line.strip()
    for text in (parser["options"]["install_requires"], *parser["options.extras_require"].values())
    for line in text.splitlines()
    if line.strip()
}
unbounded = sorted(line for line in requirements if ">=" not in line)
if unbounded:
    sys.exit(f"setup.cfg: without a lower bound: {', '.join(unbounded)}")
# Constraints have no extras.
lowest = {re.sub(r"\[.*?\]", "", line).replace(">=", "==") for line in requirements}
print("\n".join(sorted(lowest)))
