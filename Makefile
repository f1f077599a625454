# The commands a person needs, and the same ones CI runs.
CARGO ?= cargo
PYTHON ?= python3
VENV := .venv

.PHONY: run build test lint bench loadtest targets runner testrunner ort venv train clean help

help: ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 10

run: build ## everything from nothing: builds, and serves models/ on 8080 (admin on 8081)
	./target/release/sluicegate serve

build: ort ## target/release/sluicegate
	$(CARGO) build --release --locked

ort: ## ONNX Runtime's library, from a pinned wheel; without it the gateway serves with tract what tract can
	@scripts/fetch-onnxruntime.sh || echo "make: going on without ONNX Runtime; models it alone can run will be reported failed"

test: ort venv ## every test there is
	SLUICEGATE_TEST_PYTHON=$(CURDIR)/$(VENV)/bin/python $(CARGO) test --locked --no-fail-fast

lint: ## formatting and lints, warnings are errors
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked --all-targets -- -D warnings
	@for f in scripts/*.sh loadtest/*.sh .ci/run; do bash -n $$f || exit 1; done

bench: ort ## criterion
	$(CARGO) bench --locked

loadtest: build runner ## a short version of every load scenario and target: a table, reports in target/loadtest (five minutes)
	loadtest/runner/target/release/sluicegate-loadtest all --short

targets: build runner ## the performance targets, measured: a table, target/loadtest/targets.json (ten minutes)
	loadtest/runner/target/release/sluicegate-loadtest targets

runner: ## the load runner and the floor it measures against
	$(CARGO) build --release --locked --manifest-path loadtest/runner/Cargo.toml
	$(CARGO) build --release --locked --manifest-path loadtest/floor/Cargo.toml

testrunner: ## the load runner's own lints and tests
	$(CARGO) fmt --manifest-path loadtest/runner/Cargo.toml --check
	$(CARGO) clippy --locked --manifest-path loadtest/runner/Cargo.toml --all-targets -- -D warnings
	$(CARGO) test --locked --manifest-path loadtest/runner/Cargo.toml

venv: $(VENV)/.stamp ## the Python clients that the tests talk with
$(VENV)/.stamp: tests/python/requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r tests/python/requirements.txt
	@touch $@

train: ## train models/ again, the same bytes (see models/README.md)
	$(PYTHON) -m venv .venv-train
	.venv-train/bin/python -m pip install --quiet --disable-pip-version-check -r models/requirements.txt
	.venv-train/bin/python models/train.py

clean:
	$(CARGO) clean
	rm -rf loadtest/runner/target loadtest/floor/target
	rm -rf .ort $(VENV) .venv-train
