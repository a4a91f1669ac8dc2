# Each target installs its own requirements. Start with `make run`.
.PHONY: run test kafka bench accuracy stack soak soak-service fuzz mutants check format lock screenshots clean

PYTHON ?= python3
BIN := .venv/bin
TOOLS := $(BIN)/.tools
EXPRESS := bench/peers/express
NODE := node_modules/.package-lock.json

run: $(BIN)/.installed
	@$(BIN)/python -m app

# `make test PACKAGE=live` runs only the tests in tests/live.
test: $(TOOLS) $(NODE)
	@tools/setup redis-server nginx caddy prometheus openssl curl chromium golang-go systemd
	@tools/setup maven || true # without it and the Java that it installs, the tests of Kafka and of Java's client are skipped
	@tools/setup firefox-esr webkit2gtk-driver xvfb || true # without them, the tests in these browsers are skipped
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder $(if $(PACKAGE),tests/$(PACKAGE))

# The tests of Kafka faults in full size: 500,000 records, and a burst of 20 s. They take some minutes.
kafka: $(TOOLS)
	@tools/setup redis-server maven
	TALLY_TEST_KAFKA_RECORDS=500000 TALLY_TEST_KAFKA_BURST_SECONDS=20 $(BIN)/python -m pytest -s tests/kafka/test_faults.py

# Compares Tally with its peers, and writes docs/benchmarks.md. `make bench BENCH=--quick` and
# `make bench BENCH="post latency"` measure less and only print. At the end, it measures the dashboard in a browser.
bench: $(TOOLS)
	@tools/setup redis-server wrk npm maven chromium
	@cd $(EXPRESS) && { [ node_modules/.package-lock.json -nt package-lock.json ] || npm ci --no-audit --no-fund; }
	$(BIN)/python -m bench.run $(BENCH)
	$(if $(filter-out --%,$(BENCH)),,$(BIN)/python -m bench.pages)

# Runs every accuracy scenario in full size, and writes docs/accuracy.md. It takes half an hour.
# `make accuracy ONLY=disk` runs only the scenarios whose names begin with "disk".
accuracy: $(TOOLS)
	@tools/setup redis-server nginx strace
	ONLY="$(ONLY)" $(BIN)/python -m tests.support.accuracy

# Runs docker-compose.yml with three nodes on a running Docker Engine, kills its containers under load, and compares the
# counts with the responses. Images that cannot be pulled are replaced by stand-ins of Debian's packages. It needs root.
stack: $(TOOLS)
	@tools/setup debootstrap
	$(BIN)/python -m tests.support.stack

# Watches the memory of an open dashboard and its server under load, for MINUTES (1440 for a day).
MINUTES ?= 10
soak: $(TOOLS)
	@tools/setup chromium
	$(BIN)/python -m bench.pages --soak $(MINUTES)

# Everything at once on real nodes, one of which is killed every 2 minutes: `make soak-service STORE=redis MINUTES=60`. It
# writes soak-<store>.csv and a plot into OUTPUT.
STORE ?= sqlite
OUTPUT ?= test-artifacts
soak-service: $(TOOLS)
	@tools/setup redis-server
	@mkdir -p $(OUTPUT)
	$(BIN)/python -m tests.support.soak $(STORE) $(MINUTES) --output $(OUTPUT)

# Runs each fuzzer of tests/fuzz for MINUTES, with new seeds. A failure prints how to repeat its seed.
fuzz: $(TOOLS)
	@tools/setup redis-server
	@tools/setup maven || true # without it, the fuzzer of Kafka is skipped
	TALLY_FUZZ_MINUTES=$(MINUTES) $(BIN)/python -m pytest -s tests/fuzz

# Checks that each test fails on the mutants of the code that it names.
mutants: $(TOOLS) $(NODE)
	@tools/setup redis-server nginx caddy prometheus openssl curl chromium golang-go systemd maven
	$(BIN)/python -m tests.support.mutants

check: $(TOOLS) $(NODE)
	@tools/setup nginx prometheus
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
	promtool check rules deploy/prometheus/rules.yml
	promtool test rules deploy/prometheus/rules_test.yml

# Takes the screenshots and the animation in docs/img, after counting a month of hits. It takes about two minutes.
screenshots: $(TOOLS)
	@tools/setup chromium
	$(BIN)/python -m tests.support.screenshots

format: $(TOOLS)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Updates the pinned versions: pyproject.toml has the bounds, and the requirements files have the installed versions.
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
	  { echo "Tally needs Python 3.11 or newer: install it, or select it with 'make PYTHON=python3.13'."; exit 1; }
	@$(PYTHON) -m venv .venv 2>/dev/null || \
	  { rm -rf .venv; echo "Python's venv module is missing: on Debian and Ubuntu 'apt-get install python3-venv'."; exit 1; }

$(BIN)/.installed: requirements.txt | $(BIN)/python
	@echo "Installing the pinned dependencies into .venv (once) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.txt
	@touch $@

# Tools for the dashboard's types and browser tests, and the library to vendor. They are not needed to run Tally.
$(NODE): package-lock.json
	@tools/setup npm
	@npm ci --no-audit --no-fund --ignore-scripts
	@touch $@

$(TOOLS): requirements-dev.txt $(BIN)/.installed
	@echo "Installing the requirements of tests and checks into .venv (once) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.txt
	@touch $@
