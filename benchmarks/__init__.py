"""What block-wise memory costs and saves: providers side by side on the shapes of real models."""
