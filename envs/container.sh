#!/bin/sh
# Install the project in a container based on Debian 12: `container.sh cpu` or `container.sh cuda`.
# Dockerfile and envs/talker.def run it.
set -eu
cd "$(dirname "$0")/.."
export DEBIAN_FRONTEND=noninteractive
apt-get -qq update
# libgl1 and libglib2.0-0 for OpenCV; compilers and Python.h for the CUDA kernels
apt-get -qq install --yes --no-install-recommends \
    ca-certificates espeak-ng libgl1 libglib2.0-0 make python3 python3-venv \
    $([ "$1" = cuda ] && echo g++ python3-dev)
rm -rf /var/lib/apt/lists/*
export PIP_NO_CACHE_DIR=1
if [ "$1" = cuda ]; then
    make .venv/installed PYTHON=python3 GPU=cuda
else
    # the build of torch without CUDA, which is 2.5 GB smaller
    PIP_EXTRA_INDEX_URL="${PIP_EXTRA_INDEX_URL-https://download.pytorch.org/whl/cpu}" \
        make .venv/installed PYTHON=python3 GPU=
fi
# make installs without bytecode; users of the container cannot write it
.venv/bin/python -m compileall -q -j 0 .venv/lib talker > /dev/null || true
