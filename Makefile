# make demo               the whole pipeline on the demo subject
# make run VIDEO=me.mp4   the same for a video of yours
# make test               the tests; ARGS="-k track" picks some
# make test-cluster       many subjects on a real Slurm, where there can be one (SUBJECTS=20)
# make lint               style, types, workflow, import contracts
# make clean              remove what was made for the demo, and the environment

SHELL := bash
PYTHON ?= $(firstword $(foreach python,python3.11 python3.12 python3,$(shell $(python) -c \
	'import ensurepip, sys; (3, 11) <= sys.version_info < (3, 13) and print("$(python)")' 2> /dev/null)))
GPU := $(if $(shell command -v nvidia-smi),cuda)
CORES ?= all

export PATH := $(CURDIR)/.venv/bin:$(PATH)
comma := ,
install = pip install --quiet -c constraints.txt -e

.PHONY: demo run given test test-cluster lint clean

demo: .venv/installed
	snakemake --cores $(CORES) $(ARGS) results/demo/{val.mp4,metrics.json,report.html}
	@printf '\nvideo:  %s\nreport: %s\n' $(CURDIR)/results/demo/{val.mp4,report.html}

run: name = $$(basename "$(VIDEO)" | sed -E 's/\.[^.]*$$//; s/[^[:alnum:]_.-]+/_/g')
run: given .venv/installed
	snakemake --cores $(CORES) $(ARGS) --config video="$(VIDEO)"
	@printf '\nvideo:  %s\nreport: %s\n' "$(CURDIR)/results/$(name)"/{val.mp4,report.html}

given:
	@test -f "$(VIDEO)" || { echo 'no video "$(VIDEO)": make run VIDEO=me.mp4' >&2; exit 2; }

test: .venv/installed-dev
	pytest -m 'not slurm' $(ARGS)

test-cluster: .venv/installed-dev
	TALKER_SLURM_SUBJECTS=$(or $(SUBJECTS),20) pytest -m slurm $(ARGS)

lint: .venv/installed-dev
	ruff check
	ruff format --check
	basedpyright
	snakefmt --check Snakefile workflow/Snakefile rules
	snakemake --lint
	lint-imports --no-cache

clean:
	rm -rf .venv {data,results,logs,benchmarks}/demo

.venv/bin/python:
	@test -n "$(PYTHON)" || { echo 'talker needs Python 3.11 or 3.12 with the venv module;' \
		'install one, or name it: make PYTHON=/path/to/python3.11' >&2; exit 2; }
	$(PYTHON) -m venv .venv

.venv/installed: pyproject.toml constraints.txt | .venv/bin/python
	@echo 'installing into .venv, once; this takes some minutes'
	$(install) '.$(if $(GPU),[$(GPU)])'
	@touch $@

.venv/installed-dev: .venv/installed
	$(install) '.[cluster,dev$(if $(GPU),$(comma)$(GPU))]'
	@touch $@
