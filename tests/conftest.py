"""What holds for all tests: one thread, no deadlines in property tests, a deterministic cuBLAS."""

import os

import hypothesis

# Tensors are small here: more threads cost time, and most where two processes run tests at once.
# Set before torch is imported, for processes that tests start too
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Asked for by PyTorch before cuBLAS multiplies where algorithms are to be deterministic
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")
