# Two commands matter: `make bench` and `make test`. Each sets up what is missing.
#
#   PYTHON=...       interpreter to start from (python3). If it has torch and triton, they are used, not installed.
#   WHEELHOUSE=...   folder of wheels to install from instead of an index: make it with `make wheelhouse`.
#   FUZZ="..."       arguments of `make fuzz`, e.g. FUZZ="--calls 1000" (see tests/moe_align/fuzz.py).
#   RUN="..."        arguments of `asv-gpu run` for `make bench`, e.g. RUN="v0.1.0..HEAD --rounds 5" (HEAD).

override PYTHON := $(or $(PYTHON),python3)
override RUN := $(or $(RUN),HEAD)
TARGET_PYTHON := 3.12

BIN := .venv/bin
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c .venv/constraints.txt \
    $(if $(WHEELHOUSE),--no-index --find-links $(WHEELHOUSE))
# Only the plugins named here, whatever others the machine's own Python brings along.
PYTEST := PYTEST_DISABLE_PLUGIN_AUTOLOAD=1 $(BIN)/python -m pytest -p xdist

# One more than there are cores, because some tests wait for processes of theirs.
WORKERS = $(shell expr $$(getconf _NPROCESSORS_ONLN) + 1)

.PHONY: bench report test check lint types doctest fuzz sanitize setup wheelhouse clean

bench: setup
	$(BIN)/asv-gpu run $(RUN); status=$$?; $(BIN)/asv-gpu report && exit $$status

report: setup
	$(BIN)/asv-gpu report

test: setup
	$(PYTEST) -m alone
	$(PYTEST) -n $(WORKERS) --dist loadgroup -m "not alone"

check: lint types doctest test

lint: .venv/ready-to-check
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/zizmor --offline --persona=auditor --quiet .github/
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.dependabot .github/dependabot.yml

types: .venv/ready-to-check
	$(BIN)/mypy

doctest: setup
	$(PYTEST) --doctest-modules src/moe_align --doctest-glob="*.md" README.md

# Both need a GPU.
fuzz: setup
	PYTHONPATH=src $(BIN)/python -m tests.moe_align.fuzz $(FUZZ)

# Every allocation on its own, so that no neighbour hides what is read or written past the end of one.
sanitize: setup
	for tool in memcheck racecheck initcheck synccheck; do \
	    PYTORCH_NO_CUDA_MEMORY_CACHING=1 PYTHONPATH=src compute-sanitizer --tool $$tool --error-exitcode 1 \
	        $(BIN)/python -m tests.moe_align.fuzz --calls 100 --replays 0 --jobs 1 || exit 1; \
	done

setup: .venv/ready

.venv/ready: requirements.txt constraints.txt tracking/pyproject.toml tracking/src/asv_bench_gpu/inherit.py
	rm -rf .venv
	if $(PYTHON) -c "import torch, triton" 2>/dev/null; then \
	    $(PYTHON) tracking/src/asv_bench_gpu/inherit.py .venv constraints.txt; \
	else \
	    $(PYTHON) -m venv .venv && cp constraints.txt .venv/; \
	fi
	$(PIP_INSTALL) -r requirements.txt
	touch $@

.venv/ready-to-check: requirements-check.txt .venv/ready
	$(PIP_INSTALL) -r requirements-check.txt
	touch $@

# For a machine with torch and triton but no network, and Python $(TARGET_PYTHON).
wheelhouse:
	rm -rf wheelhouse
	sed -E '/^(torch|triton|sympy|mpmath|networkx|fsspec|filelock|ruff|mypy|zizmor)==/d' constraints.txt > /tmp/wheelhouse-$$$$.txt && \
	$(PYTHON) -m pip download --no-deps --only-binary=:all: --python-version $(TARGET_PYTHON) --implementation cp \
	    $(foreach glibc,2_28 2_27 2_17,--platform manylinux_$(glibc)_x86_64) \
	    --platform manylinux2014_x86_64 --platform manylinux1_x86_64 -d wheelhouse -r /tmp/wheelhouse-$$$$.txt && \
	rm /tmp/wheelhouse-$$$$.txt

clean:
	rm -rf .venv .asv .cache wheelhouse reports/html
