# make demo and make test set up everything they need. make help lists the rest.
SHELL  := /bin/bash
VENV   := .venv
STAMP  := $(VENV)/.installed
RUN    := $(VENV)/bin/python -m
PYTHON ?= python3

.PHONY: help demo test check unit compiled e2e system format lint types imports bench fuzz lock clean binaries \
        system-cluster image cluster cluster-down cluster-e2e

help:  ## List the targets
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 16

demo: $(STAMP)  ## See it work on loopback, without privileges or a cluster
	@$(VENV)/bin/svcproxy demo

test: check compiled e2e  ## Everything that CI runs

check: format lint types imports unit  ## Formatting, lint, types, layers and tests; no control plane

format: $(STAMP)
	$(RUN) ruff format --check .

lint: $(STAMP)
	$(RUN) ruff check .

types: $(STAMP)
	$(RUN) mypy

imports: $(STAMP)
	$(VENV)/bin/lint-imports

unit: $(STAMP) system  ## Tests that need no control plane
	$(RUN) pytest -m 'not e2e'

compiled: $(STAMP) system  ## The hot modules' tests against the mypyc build
	tools/test-compiled $(VENV)

e2e: $(STAMP) system binaries  ## Tests against a real etcd and kube-apiserver
	tools/run-e2e $(VENV)

cluster: $(STAMP) system-cluster  ## Start a cluster of three nodes in namespaces, with svcproxy installed; as root
	@$(RUN) tests.cluster up

cluster-down: $(STAMP)  ## End it, and remove what killed ones have left
	@$(RUN) tests.cluster down

cluster-e2e: $(STAMP) system-cluster  ## Tests in such a cluster: pods, names, rolling updates
	$(RUN) pytest -m cluster

image: $(STAMP)  ## The image as dist/svcproxy.tar, for docker load or ctr images import; as root on Debian 12
	@mkdir -p dist && $(RUN) deploy.image.archive dist/svcproxy.tar svcproxy:$$($(VENV)/bin/svcproxy version | cut -d' ' -f2)

binaries:  ## Build what the tests run beside (CoreDNS, etcd, Kubernetes' programs) into the cache, if it is not there
	$(PYTHON) svcproxy/testing/binaries.py etcd kube-apiserver kubectl kube-proxy coredns

system:  ## System packages that tests use: installed as root on Debian, else announced
	@tools/system-packages

system-cluster:
	@tools/system-packages cluster

FUZZ_SECONDS ?= 600

fuzz: $(STAMP)  ## Fuzz what strangers send to DNS, for FUZZ_SECONDS in all (600)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check --require-hashes -r requirements/fuzz.txt
	set -e; for target in query stream reply; do \
	    $(RUN) tests.fuzz $$target -max_total_time=$$(( $(FUZZ_SECONDS) / 3 )) -max_len=1500 -timeout=10; done

bench: $(STAMP)  ## List the benchmarks
	@ls -d bench/*/ && echo 'each has a README.md that says how to run it'

lock: $(STAMP)  ## Renew the lock files
	PATH="$(CURDIR)/$(VENV)/bin:$$PATH" requirements/lock

clean:  ## Remove what the targets above made in the checkout
	rm -rf $(VENV) $(VENV)-compiled build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

$(STAMP): requirements/test.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check --require-hashes -r requirements/test.txt
	$(VENV)/bin/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@
