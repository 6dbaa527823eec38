import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys, torch
from utils.device import keep_memory
if sys.argv[1] == "keep":
    keep_memory()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def use():
    for _ in range(20):
        tensors = [torch.zeros(2**21) for _ in range(3)]  # of 8 MiB
        del tensors
use()
before = faults()
use()
print(faults() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other allocators have other habits")
def test_memory_that_is_kept_is_not_mapped_anew():
    faults = {
        word: int(subprocess.run([sys.executable, "-c", PROGRAM, word], check=True, capture_output=True).stdout)
        for word in ("keep", "plain")
    }
    assert faults["keep"] < 0.1 * faults["plain"]
