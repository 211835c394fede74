"""The Triton backend, imported when it is first used. docs/kernels.md explains its files."""
