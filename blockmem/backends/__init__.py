"""The backends: modules with the same functions `forward`, `backward` and `saved_size`.

`torch.chunks` is the PyTorch backend and `triton.launch` the Triton backend. `choice` says which of
them computes.
"""
