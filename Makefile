# The only place that knows the clang command, and the entry to everything: demo, test, lint, bpf, bench.

.DEFAULT_GOAL := help
# One thing after the other: the suites share one machine, and a live test measures time.
.NOTPARALLEL:
PY      := .venv/bin/python
RESULTS := build/results
# The kernels of `make vm` and `make matrix`; tests/vm/kernels.py knows where each comes from.
KERNELS ?= 5.10 6.1 6.12 newest
SCRIPTS := .ci/run tests/setup.sh $(wildcard tests/vm/*.sh vagrant/versions.env vagrant/*/*.sh)

.PHONY: help
help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1	/p' $(MAKEFILE_LIST) | expand -t 12

.PHONY: setup setup-tests setup-vm setup-vagrant
setup: ## Debian packages and .venv, once (root)
	@tests/setup.sh base
setup-tests: setup
	@tests/setup.sh tests
setup-vm: setup
	@tests/setup.sh vm
setup-vagrant: setup-vm
	@tests/setup.sh vagrant

.PHONY: demo
demo: setup bpf ## builds a network, breaks it, and says why it is broken (root)
	@$(PY) -m k8snet lab run forward-policy-drop

.PHONY: test lint unit live vm
test: setup bpf lint unit live vm ## everything (root)
	@$(PY) tests/tally.py $(RESULTS) unit live $(KERNELS:%=vm-%)

lint: setup-tests ## ruff, mypy --strict, shellcheck
	$(PY) -m ruff check
	$(PY) -m ruff format --check
	$(PY) -m mypy
	@command -v shellcheck >/dev/null || { echo 'shellcheck is not installed: apt-get install shellcheck' >&2; exit 1; }
	shellcheck -x $(SCRIPTS)

unit: setup-tests bpf ## no root, no kernel
	@mkdir -p $(RESULTS) && rm -f $(RESULTS)/unit.xml
	$(PY) -m pytest tests/unit --junitxml=$(RESULTS)/unit.xml

live: setup-tests bpf ## real packets on the running kernel (root)
	@mkdir -p $(RESULTS) && rm -f $(RESULTS)/live.xml
	$(PY) -m pytest tests/live --junitxml=$(RESULTS)/live.xml

vm: setup-vm bpf ## what depends on the kernel, on others in virtual machines; KERNELS="6.1 newest"
	@mkdir -p $(RESULTS) && rm -f $(RESULTS)/vm-*.xml
	$(PY) tests/vm/run.py --results $(RESULTS) $(KERNELS)

.PHONY: vagrant-lab vagrant-test
vagrant-lab: ## breaks what `vagrant up` built, traces, mends, one fault after the other; SCENARIO=mtu
	@vagrant/run.py $(SCENARIO)
vagrant-test: setup-vagrant ## provisions an emulated machine as LAB=netns does, and plays all faults in it (root)
	@$(PY) tests/vm/provision.py

.PHONY: matrix
matrix: $(if $(KERNELS),setup-vm,setup) bpf ## every scenario, back end and kernel: docs/matrix.md; hours; KERNELS= for this one
	@mkdir -p $(RESULTS)/matrix && rm -f $(RESULTS)/matrix/*.xml
	-$(PY) -m pytest tests/live/test_scenarios.py -q --junitxml=$(RESULTS)/matrix/live.xml
	-$(if $(KERNELS),$(PY) tests/vm/run.py --all --minutes 240 --results $(RESULTS)/matrix $(KERNELS))
	@$(PY) tests/matrix.py $(RESULTS)/matrix --page docs/matrix.md

.PHONY: bench
bench: setup bpf ## what tracing costs (root)
	@$(PY) tests/bench.py

.PHONY: clean
clean: ## removes what was built; .venv and the kernels of `make vm` too
	rm -rf build dist .venv tracer/k8snet/objects .mypy_cache .pytest_cache .ruff_cache .hypothesis

# --- bpf: probes/*.bpf.c, compiled into the one object that the wheel ships --------------------------------------
# As one unit, because linking objects does not work yet: libbpf 1.1 refuses a kfunc used in two of them, and llvm-link
# mixes up their type ids. It is also the quickest, and each shared function is there once.
CLANG   ?= clang
LLVM_STRIP ?= llvm-strip
OBJECT  := tracer/k8snet/objects/k8snet.bpf.o
BUILD   := build/bpf
SOURCES := $(wildcard probes/*.bpf.c)
BPF_CFLAGS := -g -O2 -target bpf -mcpu=v3 -Wall -Wextra -Wno-unused-parameter -Werror -Ibpf -I. \
	-ffile-prefix-map=$(CURDIR)=. -D__TARGET_ARCH_$(shell uname -m | sed 's/x86_64/x86/;s/aarch64/arm64/')

.PHONY: bpf
bpf: $(OBJECT)

# Written beside and moved, so that an interrupted build leaves no half object behind.
$(OBJECT): $(SOURCES) Makefile
	@mkdir -p $(@D) $(BUILD)
	printf '#include "%s"\n' $(SOURCES) | $(CLANG) $(BPF_CFLAGS) -MMD -MP -MT $@ -MF $(BUILD)/k8snet.d -x c -c - -o $(BUILD)/k8snet.bpf.o
	$(LLVM_STRIP) -g $(BUILD)/k8snet.bpf.o
	mv $(BUILD)/k8snet.bpf.o $@

-include $(BUILD)/k8snet.d
