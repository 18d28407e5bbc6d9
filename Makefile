# Everything a newcomer needs. The first target sets up `.venv/` by itself;
# a second run finds it done and starts at once.
PYTHON ?= python3
VENV   ?= .venv
PY     := $(VENV)/bin/python
READY  := $(VENV)/.ready

# TORCH=latest takes the registry's newest torch and torchvision, TORCH=2.6.0 that release.
CONSTRAINTS := requirements/constraints.txt
ifdef TORCH
CONSTRAINTS := $(VENV)/constraints.txt
endif

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow test-gpu ops docs format lint type clean

help:  ## list the targets
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY)  ## set up .venv (done by every other target where needed)

$(READY): pyproject.toml $(wildcard requirements/*.txt)
	@echo "== Setting up $(VENV): a few minutes, most of it torch's download =="
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 10) or sys.exit("make: CPython >= 3.10 is needed, $(PYTHON) is " + sys.version.split()[0] + "; name another one: make PYTHON=python3.11")'
	@test -x $(PY) || $(PYTHON) -m venv $(VENV) || { echo "make: $(PYTHON) has no venv module; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	@test -z "$(TORCH)" || { grep -v -E '^torch(vision)?==' requirements/constraints.txt; test "$(TORCH)" = latest || echo "torch==$(TORCH)"; } > $(VENV)/constraints.txt
	$(PY) -m pip install --disable-pip-version-check -c $(CONSTRAINTS) -e '.[mm,tests]'
	@touch $@
	@echo "== Set-up done =="

DEMO := work_dirs/demo
DEMO_CONFIG := configs/ltm_swin_maskrcnn_shapes.py
demo: $(READY)  ## train Mask R-CNN with LTM-Swin on built-in data, evaluate, write a report
	@echo "== Demo: up to 8 minutes of training on two cores, 5 more for test, learning and report =="
	$(PY) tools/train.py $(DEMO_CONFIG) --work-dir $(DEMO) --cfg-options train_dataloader.dataset.indices=400
	$(PY) tools/test.py $(DEMO_CONFIG) $$(cat $(DEMO)/last_checkpoint) --work-dir $(DEMO) --show-dir $(DEMO)/pictures
	$(PY) tools/learn.py $(DEMO_CONFIG) $$(cat $(DEMO)/last_checkpoint) --ltm fast --steps 60 --crop 224 --out $(DEMO)/learned.pth
	$(PY) tools/report.py $(DEMO)
	@echo "== Open $(DEMO)/report.html in a browser (results, which tokens merged, what was learned); predictions: $(DEMO)/pictures =="
	@echo "== Next: your own photos, docs/own-data.md; your own checkpoint, docs/faster-checkpoint.md =="

# One thread each: processes that wait in OpenMP make each other many times slower.
test: $(READY)  ## the default tests, on all cores
	OMP_NUM_THREADS=1 $(PY) -m pytest -n auto --dist worksteal --durations 20

test-slow: $(READY)  ## tests that train, time or build something
	$(PY) -m pytest -m slow --timeout 3600

test-gpu: $(READY)  ## tests that need a CUDA device
	$(PY) -m pytest -m gpu

ops: $(READY)  ## build mmcv's compiled ops (about 12 minutes; optional)
	@requirements/build_ops.sh $(PY)

DOCS := $(VENV)/.docs
$(DOCS): requirements/docs.txt $(READY)
	$(PY) -m pip install --disable-pip-version-check -q -r requirements/docs.txt
	@touch $@

docs: $(DOCS)  ## build the documentation: build/docs/index.html
	$(PY) -m sphinx -W --keep-going -q docs build/docs

format: $(READY)  ## rewrite the code in the house format
	$(PY) -m ruff format . && $(PY) -m ruff check --fix .

lint: $(READY)  ## check format and lint
	$(PY) -m ruff check . && $(PY) -m ruff format --check .

type: $(READY)  ## check types
	$(PY) -m mypy

clean:  ## remove what was made here, except data and work_dirs
	rm -rf $(VENV) .cache build *.egg-info
