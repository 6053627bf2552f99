# Everything here works from nothing: the environment is made in .venv, with pinned dependencies.
PYTHON ?= python3
BIN := .venv/bin

BENCH := .venv-bench/bin
# Without bytecode every process compiles again what it imports: litellm, the package, its tests.
export PYTHONDONTWRITEBYTECODE :=
# All installed modules are compiled in one step, on every core.
PIP_OPTIONS := --quiet --disable-pip-version-check --no-compile
COMPILE := -m compileall -qq -j 0

.PHONY: help docs test test-thorough test-all test-soak mutants messages torture demo bench bench-smoke lint format wheel constraints clean

help:
	@echo "make demo         runs through trouble, a real Router and a local server: outage, Ctrl-C, fail fast (half a minute)"
	@echo "make test         the tests to run before each commit: every promise (about four minutes on two cores)"
	@echo "make test-all     all tests; make test-thorough: those that make test leaves out"
	@echo "                  TEST_OPTIONS='tests/engine -x' chooses tests and sets options of pytest"
	@echo "make test-soak    make test again and again (SOAK_ROUNDS=10) beside two busy loops"
	@echo "make mutants      plant thousands of small faults: do the tests find them? (hours)"
	@echo "                  MUTANTS_OPTIONS='--group budget --every 7' chooses: see tests/mutants.py --help"
	@echo "make messages     run all tests, and write one example of each error to tests/project/messages.txt"
	@echo "make torture      runs that are killed and starved of disk, again and again (a quarter of an hour)"
	@echo "                  TORTURE_OPTIONS='--scenario killed --kills 50' chooses: see --help"
	@echo "make bench        the benchmarks, beside what you would use instead (half an hour)"
	@echo "                  BENCH_OPTIONS='overhead memory --quick' chooses: see python -m benchmarks --help"
	@echo "make bench-smoke  every benchmark with tiny sizes: does it run?"
	@echo "make lint         ruff, mypy, pyright and the layers of imports"
	@echo "make format       format the code, and fix what ruff can fix"
	@echo "make docs         the documentation as a site, in build/site"
	@echo "make wheel        build the wheel and the source distribution in dist/, and check them"
	@echo "make constraints  pin the newest versions that install"
	@echo "make clean        remove what the other targets made"
	@echo "PYTHON=python3.12 make ...   with another Python (after make clean)"

.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed, and $(PYTHON) is older: PYTHON=python3.11 make ..."; exit 1; }
	rm -rf .venv
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install $(PIP_OPTIONS) -c constraints.txt -e '.[dev]'
	$(BIN)/python $(COMPILE) .venv/lib
	touch $@

# A process for each core; all tests of a file run in the same one.
TEST_OPTIONS ?=
PYTEST := $(BIN)/pytest --numprocesses auto --dist loadfile
test: .venv/installed
	HYPOTHESIS_PROFILE=few $(PYTEST) -m "not thorough" $(TEST_OPTIONS)

# The server of tests/router/direct/test_litellm_proxy.py, which fails without it.
.venv-proxy/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed, and $(PYTHON) is older: PYTHON=python3.11 make ..."; exit 1; }
	rm -rf .venv-proxy
	$(PYTHON) -m venv .venv-proxy
	.venv-proxy/bin/python -m pip install $(PIP_OPTIONS) -c constraints.txt -e '.[proxy]'
	.venv-proxy/bin/python $(COMPILE) .venv-proxy/lib
	touch $@

# What make test leaves out.
test-thorough: .venv/installed .venv-proxy/installed
	$(PYTEST) -m thorough $(TEST_OPTIONS)

test-all: .venv/installed .venv-proxy/installed
	$(PYTEST) $(TEST_OPTIONS)

# Tests that depend on time fail beside two busy loops.
SOAK_ROUNDS ?= 10
test-soak: .venv/installed
	@(while :; do :; done) & one=$$!; (while :; do :; done) & other=$$!; \
	trap "kill $$one $$other" EXIT; trap "exit 130" HUP INT PIPE TERM; \
	for round in $$(seq $(SOAK_ROUNDS)); do \
		echo "round $$round of $(SOAK_ROUNDS)"; $(MAKE) --no-print-directory test || exit 1; \
	done

# In an environment of its own: nothing else needs mutmut, and its results depend on its version.
.venv-mutants/installed: pyproject.toml constraints.txt
	rm -rf .venv-mutants
	$(PYTHON) -m venv .venv-mutants
	.venv-mutants/bin/python -m pip install $(PIP_OPTIONS) -c constraints.txt -e '.[mutants]'
	.venv-mutants/bin/python $(COMPILE) .venv-mutants/lib
	touch $@

MUTANTS_OPTIONS ?=
mutants: .venv-mutants/installed
	nice -n 19 .venv-mutants/bin/python tests/mutants.py $(MUTANTS_OPTIONS)

# Every error that the package makes in its tests, for tests/project/test_messages.py.
MESSAGES_OPTIONS ?=
messages: .venv/installed
	$(BIN)/python tests/messages.py --numprocesses auto --dist loadfile $(MESSAGES_OPTIONS)

TORTURE_OPTIONS ?=
torture: .venv/installed
	$(BIN)/python tests/torture.py $(TORTURE_OPTIONS)

demo: .venv/installed
	$(BIN)/parallel-core demo

# The benchmarks have their own environment: their peers would change what is tested and linted.
.venv-bench/installed: pyproject.toml constraints.txt benchmarks/install.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed, and $(PYTHON) is older: PYTHON=python3.11 make ..."; exit 1; }
	rm -rf .venv-bench
	$(PYTHON) -m venv .venv-bench
	$(BENCH)/python -m pip install $(PIP_OPTIONS) -c constraints.txt -e '.[ray]'
	$(BENCH)/python -m benchmarks.install
	$(BENCH)/python $(COMPILE) .venv-bench/lib
	touch $@

BENCH_OPTIONS ?=
bench: .venv-bench/installed
	mkdir -p build
	$(BENCH)/python -m benchmarks --json build/benchmarks.json --plot build/charts $(BENCH_OPTIONS)

bench-smoke: .venv-bench/installed
	mkdir -p build
	$(BENCH)/python -m benchmarks --smoke --json build/smoke.json --plot build/smoke
	$(BENCH)/python -m benchmarks.adaptive --smoke --plot build/smoke
	$(BENCH)/python -m benchmarks.hedging --smoke
	$(BENCH)/python -m benchmarks.overload --smoke
	$(BENCH)/python -m benchmarks.streams --smoke
	$(BENCH)/python -m benchmarks.journal --smoke
	$(BENCH)/python -m benchmarks.run_file --smoke
	$(BENCH)/python -m benchmarks.direct --smoke
	$(BENCH)/python -m benchmarks.ray_scaling --smoke

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pyright
	$(BIN)/lint-imports --no-cache

format: .venv/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Strict: a link or an anchor that leads nowhere fails, and so does a page that needs the network.
# With --quiet warnings would neither be printed nor fail.
docs: .venv/installed
	NO_MKDOCS_2_WARNING=1 LITELLM_LOCAL_MODEL_COST_MAP=True $(BIN)/python -m mkdocs build --strict
	@echo "built: build/site/index.html"

wheel: .venv/installed
	rm -rf dist
	$(BIN)/python -m build --no-isolation
	$(BIN)/twine check --strict dist/*
	$(BIN)/check-wheel-contents dist/*.whl

# The oldest supported Python decides: what installs there installs on the newer ones.
constraints:
	rm -rf .venv build/constraints
	$(PYTHON) -m venv build/constraints
	build/constraints/bin/python -m pip install --quiet --disable-pip-version-check -e '.[dev,bench,proxy]'
	build/constraints/bin/python -m pip freeze --exclude-editable > constraints.txt
	rm -rf build/constraints

clean:
	rm -rf .venv .venv-bench .venv-mutants .venv-proxy mutants .ci/venvs build dist .hypothesis .mypy_cache .pytest_cache .ruff_cache
