# `make demo` and `make test` work in a fresh clone: they set up .venv first. To use an environment of your own instead,
# with flwr_splitkd and its `simulation` and `dev` extras installed: `make test VENV=/path/to/environment`.
.DEFAULT_GOAL := help
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
MAKEFLAGS += --no-builtin-rules

TORCH := torch==2.13.0
# In a variable, because a comma would end an argument of $(call).
PACKAGE := '.[simulation,report,metrics,alns,dev]'
# Python 3.11 if there is one, which is what CI runs.
FIND_PYTHON := scripts/find-python.sh 3.11 3.12 3.13 3.10

ifeq ($(origin VENV),undefined)
VENV := .venv
READY := .venv/.ready
else
READY := given-venv
endif
PY := $(VENV)/bin/python
PYTEST := -m pytest

# torch goes first and alone, so that its build is the one that the person at the keyboard would choose. The stamp is
# written last: an installation that was interrupted starts again.
define install
	$(1) -m venv --clear $(2)
	$(2)/bin/python -m pip install --quiet --upgrade pip
	$(2)/bin/python -m pip install --quiet $(TORCH)
	$(2)/bin/python -m pip install --quiet $(3)
	touch $(2)/.ready
endef

# $(call test,python,workers beside one for each core,what): files side by side. Those that start a Flower mostly wait; they are the
# longest, and come first. Every process has one thread: those that share cores would wait for each other.
define test
	OMP_NUM_THREADS=1 $(1) $(PYTEST) --numprocesses $$(( $$(getconf _NPROCESSORS_ONLN) + $(2) )) \
	    --dist loadfile --no-loadscope-reorder $(3)
endef

.PHONY: help
help: ## show this list
	@grep -hE '^[a-z][a-z0-9-]*:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9-]+):.*## */  make \1\t/' | expand -t 24

.PHONY: setup
setup: $(READY) ## install everything into .venv

.venv/.ready: pyproject.toml constraints/newest.txt
	python=$$($(FIND_PYTHON)); echo "setting up .venv with $$python: some minutes, once"; \
	$(call install,$$python,.venv,-c constraints/newest.txt -e $(PACKAGE))

.PHONY: given-venv
given-venv:
	@$(PY) -c 'import flwr_splitkd' || { echo "VENV is $(VENV), where flwr_splitkd cannot be imported; \
	run $(PY) -m pip install -e '.[simulation,dev]', or leave VENV unset" >&2; exit 1; }

.PHONY: demo
demo: $(READY) ## distill a small student on ten virtual devices
	$(PY) scripts/demo.py

.PHONY: deploy-demo
deploy-demo: $(READY) ## the same in a deployment: TLS, authenticated SuperNodes; as root with links of 20 to 100 Mbit/s
	$(PY) scripts/deploy_demo.py

.PHONY: scct-demo
scct-demo: $(READY) ## the chain device - edge - cloud in a deployment: cloud, SuperLink and SuperNodes as processes, over TLS
	$(PY) scripts/scct_demo.py

.PHONY: test
test: $(READY) ## run all tests but the slow ones
	$(call test,$(PY),1)

.PHONY: test-slow
test-slow: $(READY) ## run the slow tests
	$(call test,$(PY),0,-m slow --timeout 900)

.PHONY: test-by-hand
test-by-hand: $(READY) ## run what neither of them runs: all examples, a fresh installation, benchmarks in their smallest form
	$(PY) $(PYTEST) -m by_hand

.PHONY: soak
soak: $(READY) ## half an hour of training under random kills, without Flower (by hand)
	PYTHONPATH=tests:tests/integration:tests/integration/faults $(PY) tests/integration/faults/soak.py --json runs/soak.json

.PHONY: test-browser
test-browser: $(READY) ## run the tests of the report page; needs Chromium (Debian: apt-get install chromium)
	$(PY) -m pip install --quiet 'playwright>=1.45'
	REQUIRE_BROWSER=1 $(PY) $(PYTEST) -m browser

# What meets other packages than numpy and the standard library.
OLDEST := tests/apps tests/deploy tests/integration \
    tests/unit/{clients,data,distill,models,report/prometheus,small_chain,split,store,strategies,tiers,wire}

.PHONY: test-oldest
test-oldest: .venv-oldest/.ready ## run the tests of what depends on versions with the oldest supported ones
	$(call test,.venv-oldest/bin/python,1,$(OLDEST))

.venv-oldest/.ready: pyproject.toml constraints/oldest.txt
	python=$$(scripts/find-python.sh 3.11); \
	$(call install,$$python,.venv-oldest,-c constraints/oldest.txt -e $(PACKAGE))

.PHONY: test-no-torch
test-no-torch: .venv-no-torch/.ready ## byte-compile everything on Python 3.10 and run the tests that need no torch
	.venv-no-torch/bin/python -m compileall -q flwr_splitkd apps benchmarks scripts tests
	$(call test,.venv-no-torch/bin/python,1)

.venv-no-torch/.ready: pyproject.toml constraints/no-torch.txt
	python=$$(scripts/find-python.sh 3.10); $$python -m venv --clear .venv-no-torch
	.venv-no-torch/bin/python -m pip install --quiet --upgrade pip
	.venv-no-torch/bin/python -m pip install --quiet -r constraints/no-torch.txt
	.venv-no-torch/bin/python -m pip install --quiet --no-deps -e .
	touch .venv-no-torch/.ready

.PHONY: test-py310
test-py310: .venv-py310/.ready ## run all tests on Python 3.10 (by hand: needs a torch build for it)
	$(call test,.venv-py310/bin/python,1)

.venv-py310/.ready: pyproject.toml constraints/newest.txt
	python=$$(scripts/find-python.sh 3.10); \
	$(call install,$$python,.venv-py310,-c constraints/newest.txt -e $(PACKAGE))

.PHONY: lint
lint: $(READY) ## what CI and pre-commit check: ruff and mypy
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

.PHONY: format
format: $(READY) ## let ruff sort imports and lay out the code
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

.PHONY: bench
bench: $(READY) ## run every benchmark: JSON in runs/bench, docs/benchmarks.md made anew; hours, and link_drop and pipeline need root
	mkdir -p runs/bench
	for file in benchmarks/[a-z]*.py; do \
	    $(PY) $$file --json runs/bench/$$(basename $$file .py).json || echo "$$file has no figures" >&2; \
	done
	$(PY) benchmarks/_page.py runs/bench docs/benchmarks.md

.PHONY: stubs
stubs: .venv-stubs/.ready ## generate the gRPC stubs from the proto
	.venv-stubs/bin/python -m grpc_tools.protoc -I . --python_out=. --pyi_out=. --grpc_python_out=. \
	    flwr_splitkd/wire/v1/dataplane.proto

.PHONY: check-stubs
check-stubs: stubs ## fail if the committed stubs are not those of the proto
	git diff --exit-code -- flwr_splitkd/wire/v1

# An environment of its own: the generator's protobuf is older than the one that newer Flowers bring.
.venv-stubs/.ready: pyproject.toml
	python=$$($(FIND_PYTHON)); $$python -m venv --clear .venv-stubs
	.venv-stubs/bin/python -m pip install --quiet grpcio-tools==1.70.0 'setuptools<81'
	touch .venv-stubs/.ready

.PHONY: clean
clean: ## remove environments, caches and build output (runs/ stays)
	rm -rf .venv .venv-oldest .venv-no-torch .venv-py310 .venv-stubs build dist
	rm -rf .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
