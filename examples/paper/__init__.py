"""What reproduces the paper with the pipeline in daad."""
