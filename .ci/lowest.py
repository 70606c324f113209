"""Print the lowest versions that setup.cfg promises, as pip's constraints."""

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
print("\n".join(sorted(line.replace(">=", "==") for line in requirements)))
