#!/bin/bash
# Run in a new environment, by Snakemake and by scripts/make_venvs.py. MediaPipe requires jax
# (370 MB), but never imports it; the extra `prepare-without-jax` lists what it does import.
set -euo pipefail
python -m pip install --quiet --no-deps -c "$TALKER_SOURCE/constraints.txt" mediapipe
