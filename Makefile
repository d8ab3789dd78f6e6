SHELL := bash
PYTHON ?= $(firstword $(foreach python,python3.11 python3.12 python3,$(shell $(python) -c \
	'import ensurepip, sys; (3, 11) <= sys.version_info < (3, 13) and print("$(python)")' 2> /dev/null)))
GPU := $(if $(shell command -v nvidia-smi),cuda)
CORES ?= all

export PATH := $(CURDIR)/.venv/bin:$(PATH)
comma := ,
install = pip install --quiet --no-compile --no-warn-conflicts -c constraints.txt
extras = prepare-without-jax,workflow,cluster,ffmpeg,serve,view,webrtc$(if $(GPU),$(comma)$(GPU))

.PHONY: help demo run video-exists test test-browser test-cluster fuzz faults lint docs envs audit clean

help:
	@echo 'make demo               run the whole pipeline on the demo subject'
	@echo 'make run VIDEO=me.mp4   run it on your video; ARGS="..." adds arguments of talker run'
	@echo 'make test               run the tests; ARGS="-k track" selects some'
	@echo 'make test-browser       run the tests of the pages in Chromium'
	@echo 'make test-cluster       run many subjects on a real Slurm, if there is one (SUBJECTS=20)'
	@echo 'make fuzz               run the stages on 3,200 damaged files (SEED=0)'
	@echo 'make faults             run the stages on full disks, with little memory, and kill them (root)'
	@echo 'make lint               check style, types, workflow and import contracts'
	@echo 'make docs               build the documentation site in build/site'
	@echo 'make envs               create environments for a cluster in the folder ENVS'
	@echo 'make audit              look for known vulnerabilities of the pinned packages'
	@echo 'make clean              remove the environment, and the files of the demo that talker wrote'

demo: .venv/installed
	talker demo --cores $(CORES) $(ARGS)

quoted = '$(subst ','\'',$(value VIDEO))'
run: video-exists .venv/installed
	talker run $(quoted) --cores $(CORES) $(ARGS)

video-exists:
	@[[ -f $(quoted) || $(quoted) == example:* ]] || { printf '%s does not exist; name a video with: make run VIDEO=me.mp4\n' \
		$(quoted) >&2; exit 2; }

test: .venv/installed-dev
	pytest -m 'not slurm and not browser' $(ARGS)

# every test ends by itself after at most 2 minutes (tests/browser.py); this limits what comes before
test-browser: .venv/installed-dev
	timeout --kill-after 10 600 pytest -m browser $(ARGS)

test-cluster: .venv/installed-dev
	TALKER_SLURM_SUBJECTS=$(or $(SUBJECTS),20) pytest -m slurm $(ARGS)

fuzz: .venv/installed-dev
	python scripts/fuzz_media.py --count 1200 --seed $(or $(SEED),0) $(ARGS)
	python scripts/fuzz_files.py --count 2000 --seed $(or $(SEED),0) $(ARGS)
	pytest --hypothesis-profile=fuzz --hypothesis-seed=$(or $(SEED),0) tests/test_properties.py

faults: .venv/installed-dev
	OPENBLAS_NUM_THREADS=1 python scripts/faults.py $(ARGS)
	TALKER_KILL_MOMENTS=25 pytest --timeout 3600 tests/test_workflow_kill.py

lint: .venv/installed-dev
	ruff check
	ruff format --check
	basedpyright
	snakefmt --check Snakefile workflow/Snakefile rules
	snakemake --lint
	lint-imports --no-cache

# an environment of its own: the API reference is read from the source, without importing talker
docs: build/docs-venv/installed
	NO_MKDOCS_2_WARNING=1 build/docs-venv/bin/mkdocs build --strict

# one environment for each group of rules, on a disk that all nodes of a cluster share
envs: .venv/installed
	@test -n "$(ENVS)" || { echo 'name a folder with: make envs ENVS=/shared/talker' >&2; exit 2; }
	python scripts/make_venvs.py '$(ENVS)'

# needs the network: pip-audit asks the database of known vulnerabilities about every pinned package
audit: build/audit-venv/installed
	build/audit-venv/bin/pip-audit --requirement constraints.txt --no-deps --disable-pip --strict

clean:
	$(or $(PYTHON),python3) scripts/clean.py demo
	rm -rf .venv

.venv/bin/python:
	@test -n "$(PYTHON)" || { echo 'talker requires Python 3.11 or 3.12 with the venv module;' \
		'install one, or name it: make PYTHON=/path/to/python3.11' >&2; exit 2; }
	$(PYTHON) -m venv .venv

.venv/installed: pyproject.toml constraints.txt | .venv/bin/python
	@echo 'installing into .venv (once); this takes a few minutes'
	$(install) -e '.[$(extras)]'
	$(install) --no-deps mediapipe
	@touch $@

.venv/installed-dev: .venv/installed
	$(install) -e '.[dev,$(extras)]'
	@touch $@

build/audit-venv/installed:
	$(PYTHON) -m venv build/audit-venv
	build/audit-venv/bin/pip install --quiet pip-audit
	@touch $@

build/docs-venv/installed: constraints.txt
	$(PYTHON) -m venv build/docs-venv
	build/docs-venv/bin/pip install --quiet -c constraints.txt mkdocs-material 'mkdocstrings[python]'
	@touch $@
