# A thin front for CMake and the scripts in tools/. `make` alone lists what there is.

JOBS ?= $(shell nproc)
BOOTSTRAP ?= yes
ASAN ?= no
CUDA ?= no
FUZZ_SECONDS ?= 60
ARGS ?=
SOAK_SECONDS ?= 1800

# rustup's toolchain, where there is one, before the system's; tools/bootstrap looks in the same order.
export PATH := $(HOME)/.cargo/bin:$(PATH)

bootstrap = $(if $(filter yes,$(BOOTSTRAP)),tools/bootstrap $(strip $(1) $(if $(filter yes,$(CUDA)),--cuda)),@:)
configure = cmake --preset $(1) --log-level=WARNING >build/configure-$(1).log 2>&1 || { cat build/configure-$(1).log; exit 1; }
build = @mkdir -p build && $(call configure,$(1)) && cmake --build --preset $(1) --parallel $(JOBS)
ctest = ctest --test-dir build/$(1) --output-on-failure --no-tests=error --parallel $(JOBS)

.DEFAULT_GOAL := help
.PHONY: help bootstrap demo cluster-demo build test test-clients test-asan test-tsan test-long soak fuzz lint format bench conformance clean

help:
	@echo 'make demo         set up, build, and stream text from the built-in model'
	@echo 'make cluster-demo NATS, a gateway and three nodes on loopback; one is killed in the middle of an answer'
	@echo 'make build        build/release/bin/millrace'
	@echo 'make test         release build and its tests (ASAN=yes: with the sanitizers of test-asan too)'
	@echo 'make test-clients OpenAI'"'"'s own clients (PyPI, npm) against a live server (ARGS: flags of tests/clients/run)'
	@echo 'make test-asan    the tests under AddressSanitizer and UndefinedBehaviorSanitizer'
	@echo 'make test-tsan    the tests under ThreadSanitizer'
	@echo 'make test-long    both of these, the tests labelled long, and every fuzzer for FUZZ_SECONDS=60'
	@echo 'make soak         a server under a real trace and misbehaving clients for SOAK_SECONDS=1800'
	@echo 'make lint         layers, format, file sizes, shell scripts, clang-tidy (ARGS=--no-tidy: without that)'
	@echo 'make format       clang-format on every C++ file'
	@echo 'make bench        speed of the built-in model (ARGS: flags of millrace bench)'
	@echo 'make conformance  compare with transformers and friends in .venv (ARGS: flags of tools/conformance/run)'
	@echo 'make clean        remove build/'
	@echo
	@echo 'JOBS=N limits parallelism; BOOTSTRAP=no leaves installed packages alone; CUDA=yes sees to it that there is an nvcc,'
	@echo 'so that the CUDA backend is built too (docs/cuda.md).'

bootstrap:
	$(call bootstrap)

build:
	$(call bootstrap)
	$(call build,release) --target millrace

demo: build
	build/release/bin/millrace run -p "Once upon a time" -n 160 --seed 7

build/demo/installed: deploy/requirements.txt
	$(call bootstrap,--conformance)
	python3 -m venv build/demo
	build/demo/bin/python -m pip install --quiet --requirement $<
	touch $@

cluster-demo: build build/demo/installed
	build/demo/bin/python deploy/cluster_demo $(ARGS)

# What is labelled `long` runs in test-long only.
test:
	$(call bootstrap)
ifeq ($(ASAN),yes)
	$(call build,asan)
	$(call ctest,asan) --label-exclude long
endif
	$(call build,release)
	$(call ctest,release) --label-exclude long

test-asan:
	$(call bootstrap)
	$(call build,asan)
	$(call ctest,asan) --label-exclude long

# Without address space randomisation: ThreadSanitizer's fixed shadow does not fit every kernel's layout.
test-tsan:
	$(call bootstrap)
	$(call build,tsan)
	$$(setarch -R true 2>/dev/null && echo setarch -R) $(call ctest,tsan) --label-exclude long

fuzz:
	$(call bootstrap,--long)
	tools/fuzz --seconds $(FUZZ_SECONDS) --jobs $(JOBS)

soak: build
	cd tests/long && MILLRACE=$(CURDIR)/build/release/bin/millrace MILLRACE_SOAK_SECONDS=$(SOAK_SECONDS) \
		python3 -u -m unittest -v soak_test

test-long: test-asan test-tsan fuzz
	$(call build,release)
	$(call ctest,release)

lint:
	$(call bootstrap,--lint)
	@mkdir -p build && $(call configure,release)
	tools/lint --jobs $(JOBS) $(ARGS)

format:
	$(call bootstrap,--lint)
	tools/lint --format

bench: build
	build/release/bin/millrace bench $(ARGS)

tests/clients/.venv/installed: tests/clients/requirements.txt tests/clients/node/package-lock.json
	$(call bootstrap,--clients)
	python3 -m venv tests/clients/.venv
	tests/clients/.venv/bin/python -m pip install --quiet --requirement $<
	cd tests/clients/node && npm ci --silent
	touch $@

# The official clients of PyPI and npm against a live server.
test-clients: build tests/clients/.venv/installed
	tests/clients/.venv/bin/python tests/clients/run $(ARGS)

.venv/installed: tools/conformance/requirements.txt
	$(call bootstrap,--conformance)
	python3 -m venv .venv
	.venv/bin/python -m pip install --quiet --requirement $<
	touch $@

conformance: build .venv/installed
	PATH="$(CURDIR)/.venv/bin:$$PATH" tools/conformance/run $(ARGS)
ifeq ($(ARGS),)
	.venv/bin/python tools/conformance/gguf_twin.py
	.venv/bin/python tools/conformance/quantized
	.venv/bin/python tools/conformance/quantize
	.venv/bin/python tools/conformance/quantize_gguf
	.venv/bin/python tools/conformance/text_fixtures.py --check
endif

clean:
	rm -rf build
