# Every target sets up what it needs. `make run` is the first one to try.
.PHONY: run test kafka bench accuracy soak mutants check format lock screenshots clean

PYTHON ?= python3
BIN := .venv/bin
TOOLS := $(BIN)/.tools
EXPRESS := bench/peers/express
NODE := node_modules/.package-lock.json

run: $(BIN)/.installed
	@$(BIN)/python -m app

test: $(TOOLS) $(NODE)
	@tools/setup redis-server nginx openssl chromium
	@tools/setup maven || true # without it, Kafka's tests are skipped
	$(BIN)/python -m pytest -n 2 --dist loadfile

# Kafka's faults in their full size, some minutes: 500,000 records, and a burst of 20 s.
kafka: $(TOOLS)
	@tools/setup redis-server maven
	TALLY_TEST_KAFKA_RECORDS=500000 TALLY_TEST_KAFKA_BURST_SECONDS=20 $(BIN)/python -m pytest -s tests/kafka/test_faults.py

# How fast, beside its peers: writes docs/benchmarks.md. `make bench BENCH=--quick` and `make bench BENCH="post delay"`
# measure less and only print. At the end, what the dashboard costs a browser, beside a page that redraws.
bench: $(TOOLS)
	@tools/setup redis-server wrk npm maven chromium
	@cd $(EXPRESS) && { [ node_modules/.package-lock.json -nt package-lock.json ] || npm ci --no-audit --no-fund; }
	$(BIN)/python -m bench.run $(BENCH)
	$(if $(filter-out --%,$(BENCH)),,$(BIN)/python -m bench.pages)

# Nothing lost, nothing doubled: every scenario of docs/accuracy.md in its full size, half an hour, and the page anew.
# `make accuracy ONLY=disk` runs those whose names begin so.
accuracy: $(TOOLS)
	@tools/setup redis-server nginx strace
	ONLY="$(ONLY)" $(BIN)/python -m tests.support.accuracy

# The memory of a dashboard that is left open under traffic, and of its server: for MINUTES, 1440 for a day.
MINUTES ?= 10
soak: $(TOOLS)
	@tools/setup chromium
	$(BIN)/python -m bench.pages --soak $(MINUTES)

# Does each fault test fail on the wrong build that it names?
mutants: $(TOOLS) $(NODE)
	@tools/setup redis-server nginx openssl chromium maven
	$(BIN)/python -m tests.support.mutants

check: $(TOOLS) $(NODE)
	@tools/setup nginx
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	node_modules/.bin/tsc
	$(BIN)/python tools/vendor.py --check
	$(BIN)/python tools/licences.py --check
	$(BIN)/python -m bandit -q -c pyproject.toml -r app tools
	$(BIN)/hadolint Dockerfile
	$(BIN)/compose-lint docker-compose.yml
	$(BIN)/python -m tests.support.nginx

# The dashboard's pictures in docs/img, of a month that is counted for them; one to two minutes.
screenshots: $(TOOLS)
	@tools/setup chromium
	$(BIN)/python -m tests.support.screenshots

format: $(TOOLS)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# The one place where versions change: pyproject.toml says which are wanted, these files which are installed.
lock: $(TOOLS)
	$(BIN)/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	  --no-emit-find-links --custom-compile-command "make lock" --upgrade pyproject.toml -o requirements.txt
	$(BIN)/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	  --no-emit-find-links --custom-compile-command "make lock" --extra dev -c requirements.txt \
	  pyproject.toml -o requirements-dev.txt

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis test-artifacts node_modules $(EXPRESS)/node_modules

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
	  { echo "Tally needs Python 3.11 or newer: install it, or name it with 'make PYTHON=python3.13'."; exit 1; }
	@$(PYTHON) -m venv .venv 2>/dev/null || \
	  { rm -rf .venv; echo "Python's venv module is missing: on Debian and Ubuntu 'apt-get install python3-venv'."; exit 1; }

$(BIN)/.installed: requirements.txt | $(BIN)/python
	@echo "Installing the pinned dependencies into .venv (once) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.txt
	@touch $@

# What checks the dashboard's types, looks at its pages, and the library that is vendored; nobody who runs Tally needs it.
$(NODE): package-lock.json
	@tools/setup npm
	@npm ci --no-audit --no-fund --ignore-scripts
	@touch $@

$(TOOLS): requirements-dev.txt $(BIN)/.installed
	@echo "Installing what the tests and checks need into .venv (once) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.txt
	@touch $@
