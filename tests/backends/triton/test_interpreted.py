"""The kernels themselves, on the CPU by Triton's interpreter, in a process of its own: Triton asks
for TRITON_INTERPRET when kernels are defined."""

import os
import re
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parents[1]


def test_the_battery_passes_in_the_interpreter():
    files = [TESTS / "test_battery.py", TESTS / "triton" / "test_launch.py"]
    command = [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", *map(str, files)]
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run(
        command, cwd=TESTS.parents[1], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-1000:]
    assert int(re.search(r"(\d+) passed", done.stdout).group(1)) > 150
