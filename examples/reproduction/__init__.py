"""The paper's results, run again with the pipeline in daad."""
