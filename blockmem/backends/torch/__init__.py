"""The PyTorch backend: `chunks` computes the layer, `products` multiplies matrices."""
