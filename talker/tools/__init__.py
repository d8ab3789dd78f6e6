"""Commands outside the workflow: benchmarks, exchange with other programs, information."""
