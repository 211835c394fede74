"""What holds for all tests: no deadlines in property tests, and cuBLAS made deterministic."""

import os

import hypothesis

# Asked for by PyTorch before cuBLAS multiplies where algorithms are to be deterministic
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")
