"""Commands that are not stages: benchmarks, exchange with other programs, live use, information."""
