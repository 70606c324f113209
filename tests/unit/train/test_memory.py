import ctypes
import subprocess
import sys

from ssdistill.train import memory

FAULTS = """
import resource, sys
from ssdistill.train.memory import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
import torch
torch.set_num_threads(1)
# The heap grows to its final size first.
for _ in range(50):
    torch.ones(1 << 23)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    torch.ones(1 << 23)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(word):
    command = [sys.executable, "-c", FAULTS, word]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def test_memory_once_freed_costs_fewer_pages_again():
    if not hasattr(ctypes.CDLL(None), "mallopt"):
        return
    assert faults("keep") < faults("leave") / 2


def test_a_c_library_without_the_call_is_left_alone(monkeypatch):
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: object())
    assert memory.keep_freed_memory.__wrapped__() is False
