"""The kernels themselves, on the CPU by Triton's interpreter, in a process of its own: Triton asks
for TRITON_INTERPRET when kernels are defined."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
BATTERY, LAUNCH = TESTS / "test_battery.py", TESTS / "triton" / "test_launch.py"
FEW = [  # in every run: values, gradients, strides, chunks and shares, each at least once
    *(
        f"{BATTERY}::test_values_and_gradients[{case}-triton-{kind}-cpu]"
        for case in ("odd sizes-float32-0.1-True", "1-d-float16-1.0-False")
        for kind in ("small", "large")
    ),
    f"{BATTERY}::test_any_strides_of_input_and_upstream_gradient[sliced-expanded-triton-small-cpu]",
    f"{BATTERY}::test_a_frozen_side_gets_no_gradient_and_changes_nothing[x-triton-large-cpu]",
    f"{LAUNCH}::test_large_blocks_in_chunks[1-d-210-False]",
    f"{LAUNCH}::test_items_in_shares[1]",
]


def passed(*arguments):
    """Run tests in the interpreter, and return how many passed."""
    command = [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", *map(str, arguments)]
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run(
        command, cwd=TESTS.parents[1], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-1000:]
    return int(re.search(r"(\d+) passed", done.stdout).group(1))


def test_a_few_cases_pass_in_the_interpreter():
    assert passed(*FEW) == len(FEW)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["triton-small", "triton-large"])
def test_the_battery_passes_in_the_interpreter(kind):
    assert passed(BATTERY, "-k", kind) > 100


@pytest.mark.slow
def test_all_launches_pass_in_the_interpreter():
    assert passed(LAUNCH) > 25
