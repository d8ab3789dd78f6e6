"""What every command needs: options, files, GPUs, parallelism and provenance."""
