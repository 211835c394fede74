"""How many instructions the loops of the kernels have, counted in the machine code for an H200.

A kernel whose loop grew by a twentieth is slower by about as much, and no test of values sees it.
The tiles were chosen by timing them on an H200; with other tiles these are other numbers.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.backends.triton.test_compiled import MULTIPLYING, compiled
from tests.helpers.compile_only import loops

GROWTH = 1.05
# Of the read kernel the loop of the normaliser and that of the answer; then both gradients' loops.
REACHED = {  # by dtype and whether the map is channels_last, at D 64
    ("bf16", False): {
        "read_kernel": [418, 543],
        "grad_queries_kernel": [323, 447],
        "grad_items_kernel": [466],
    },
    ("bf16", True): {
        "read_kernel": [409, 530],
        "grad_queries_kernel": [325, 446],
        "grad_items_kernel": [475],
    },
    ("tf32", False): {
        "read_kernel": [478, 1199],
        "grad_queries_kernel": [410, 821],
        "grad_items_kernel": [851],
    },
    ("tf32", True): {
        "read_kernel": [431, 1158],
        "grad_queries_kernel": [369, 786],
        "grad_items_kernel": [895],
    },
}
SMALL = ("bf16", False)  # in every run
CASES = [pytest.param(*case, marks=() if case == SMALL else pytest.mark.slow) for case in REACHED]
ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize(("precision", "channels_last"), CASES)
def test_loops_are_no_longer_than_they_were(precision, channels_last):
    found = {
        kernel.name: [loop for loop in loops(kernel.sass) if loop > 20]
        for kernel in compiled("sm_90", precision, (64, 1, 1), channels_last)
        if kernel.name in MULTIPLYING
    }
    reached = REACHED[precision, channels_last]
    assert found.keys() == reached.keys()
    for name, counts in found.items():
        assert len(counts) == len(reached[name]), (name, counts)
        for count, before in zip(counts, reached[name], strict=True):
            assert count <= GROWTH * before, (name, counts)


@pytest.mark.parametrize(("precision", "channels_last"), CASES)
def test_products_do_not_wait_for_one_another(precision, channels_last):
    """Where ptxas puts products one after another (its remark C7515), it waits after each."""
    for kernel in compiled("sm_90", precision, (64, 1, 1), channels_last):
        if kernel.name in MULTIPLYING:
            products, waits = kernel.count("HGMMA"), kernel.count(r"WARPGROUP\.DEPBAR")
            assert 2 * waits < products, (kernel.name, products, waits)


@pytest.mark.long
@pytest.mark.parametrize("version", ["3.6.0"])
def test_the_same_holds_for_the_triton_of_many_gpu_machines(version, tmp_path):
    """Its ptxas put products one after another in kernels that are no more."""
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target"]
    done = subprocess.run([*command, str(tmp_path), f"triton=={version}"], capture_output=True)
    if done.returncode:
        pytest.skip(f"triton {version} cannot be installed: {done.stderr.decode()[-200:]}")
    environment = {
        **os.environ,
        "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}",
        "TRITON_CACHE_DIR": str(tmp_path / "cache"),
    }
    script = "import triton; print(triton.__version__)"
    there = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
    )
    assert there.stdout.strip() == version
    tests = [f"{Path(__file__).relative_to(ROOT)}::test_products_do_not_wait_for_one_another"]
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-p",
            "no:cacheprovider",
            "-m",
            "slow or not slow",
            *tests,
        ],
        env=environment,
        cwd=ROOT,
        capture_output=True,
    )
    assert done.returncode == 0, done.stdout.decode()[-3000:]


def test_what_a_loop_is():
    """From where a jump backwards leads to the jump, both counted; also with a predicate."""
    listing = """
        /*0000*/                   MOV R1, c[0x0][0x28] ;
        /*0010*/                   IADD3 R2, R2, 0x1, RZ ;
        /*0020*/                   ISETP.LT.AND P0, PT, R2, R3, PT ;
        /*0030*/              @P0  BRA 0x10 ;
        /*0040*/                   BRA 0x60 ;
        /*0050*/                   NOP ;
        /*0060*/                   FADD R4, R4, R5 ;
        /*0070*/                   BRA.U UP0, 0x50 ;
        /*0080*/                   EXIT ;
        /*0090*/                   BRA 0x90 ;
    """
    assert loops(listing) == [3, 3, 1]
