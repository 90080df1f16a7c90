# Two commands: `make demo` runs a whole round, `make test` the tests. Each makes its own environment first.
PYTHON ?= python3
VENV ?= .venv
WORKSPACE ?= demo-workspace
PIP = $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints-cpu.txt

# As many processes as there are cores, one thread each: tests of models this small gain nothing from more. A file stays in
# one process, so that its tests share what they start.
PYTEST = -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile
test test-lowest: export OMP_NUM_THREADS = 1

.PHONY: demo test test-lowest test-vllm test-trl test-ray lint models clean

demo: $(VENV)/.installed
	$(VENV)/bin/rlaif run configs/demo.yaml --workspace $(WORKSPACE)

test: $(VENV)/.installed-test
	$(VENV)/bin/python $(PYTEST) -m "not slow"
	$(VENV)/bin/python $(PYTEST) -m slow

# The fast tests with the oldest versions that pyproject.toml admits.
test-lowest: $(VENV)/bin/python
	test -x $(VENV)-lowest/bin/python || $(PYTHON) -m venv $(VENV)-lowest
	$(VENV)-lowest/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints-lowest.txt \
		--editable . pytest pytest-xdist hatchling
	$(VENV)-lowest/bin/python $(PYTEST) -m "not slow"

# The tests that need vLLM, with its build for the CPU: a set of its own, pinned whole, so that nothing is resolved.
test-vllm: $(VENV)-vllm/.installed
	$(VENV)-vllm/bin/python -m pytest -m vllm tests/judges/test_vllm.py tests/rlhf/test_vllm_rollouts.py \
		tests/rlhf/test_vllm_scores.py

$(VENV)-vllm/.installed: pyproject.toml constraints-vllm.txt
	test -x $(VENV)-vllm/bin/python || $(PYTHON) -m venv $(VENV)-vllm
	$(VENV)-vllm/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --requirement constraints-vllm.txt
	$(VENV)-vllm/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $@

# The tests that need TRL and datasets, in a set of their own too.
test-trl: $(VENV)-trl/.installed
	$(VENV)-trl/bin/python -m pytest -m trl tests/trl

$(VENV)-trl/.installed: constraints-trl.txt
	test -x $(VENV)-trl/bin/python || $(PYTHON) -m venv $(VENV)-trl
	$(VENV)-trl/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --requirement constraints-trl.txt
	@touch $@

# The tests of shards on a Ray cluster of two nodes and on Dask workers, in a set of their own, pinned whole.
test-ray: $(VENV)-ray/.installed
	$(VENV)-ray/bin/python -m pytest -m ray tests/shards/test_clusters.py

$(VENV)-ray/.installed: pyproject.toml constraints-ray.txt
	test -x $(VENV)-ray/bin/python || $(PYTHON) -m venv $(VENV)-ray
	$(VENV)-ray/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --requirement constraints-ray.txt
	$(VENV)-ray/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $@

lint: $(VENV)/.installed-test
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

# Builds the embedded world's data and models again, from a fixed seed.
models: $(VENV)/.installed
	$(VENV)/bin/python datasets/tiny/build

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Python 3.11 or newer is needed, $(PYTHON) is older: make PYTHON=python3.11 ..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints-cpu.txt | $(VENV)/bin/python
	$(PIP) --editable .
	@touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(PIP) --editable '.[test]'
	@touch $@

clean:
	rm -rf $(VENV) $(WORKSPACE) .mypy_cache .ruff_cache .pytest_cache
