# Every target prints its next step; each has a twin for people without make: python -m stack COMMAND.
.DEFAULT_GOAL := help
PYTHON ?= python3
PY := .venv/bin/python
DOMAIN ?= learning
OVERLAY ?= dev
# for every platform and Python from 3.11 on, so that one lock file serves all machines
UV := .venv/bin/uv pip compile --quiet --no-config --universal --python-version 3.11 --generate-hashes --custom-compile-command "make lock"
export DOMAIN

help: ## this list
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-18s %s\n", $$1, $$2}'

setup: .venv/.installed lib/.verified ## make .venv, install packages, fetch and verify the jars

up: setup ## start ZooKeeper, Kafka, HDFS and Spark; start again what died
	@$(PY) -m stack up

down: setup ## stop them; data stays
	@$(PY) -m stack down

reset: setup ## stop them and wipe data, checkpoints and topics together (asks first)
	@$(PY) -m stack reset

status: setup ## one line per service
	@$(PY) -m stack status

logs: setup ## the last lines of every service's log
	@$(PY) -m stack logs

doctor: setup ## find what would fail, and the command that mends it
	@$(PY) -m stack doctor

demo: setup ## run everything on live events and prove the answers
	@$(PY) -m stack.demo

batch: setup ## recompute the batch views once (DOMAIN=learning)
	@$(PY) batch_layer.py --domain $(DOMAIN)

bench: setup ## measure CPU seconds per million events
	@$(PY) -m bench

test: setup ## all tests: unit, integration, end to end
	$(PY) -m pytest tests/unit tests/integration tests/e2e

test-unit: setup ## tests that need no services
	$(PY) -m pytest tests/unit

test-integration: setup ## tests on the real stack, one layer at a time
	$(PY) -m pytest tests/integration

test-e2e: setup ## tests of all layers together
	$(PY) -m pytest tests/e2e

k8s: setup ## print the Kubernetes manifests (OVERLAY=dev), to be piped into kubectl apply -f -
	@$(PY) k8s/render.py $(OVERLAY)

lock: setup ## pin all packages with their hashes, after a change of requirements.txt or requirements-dev.txt
	$(UV) --output-file requirements.lock requirements.txt
	$(UV) --constraint requirements.lock --output-file requirements-dev.lock requirements-dev.txt

sbom: setup ## write sbom.json: every package and jar with version and licence
	@$(PY) -m stack.sbom

check: setup ## format, lint, types
	.venv/bin/ruff format --check . && .venv/bin/ruff check . && .venv/bin/mypy

.venv/.installed: requirements-dev.lock
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python %d.%d is too old; choose one: make setup PYTHON=python3.11" % sys.version_info[:2])'
	test -x $(PY) || $(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.lock
	@touch $@

lib/.verified: stack/jars.lock stack/ivy.xml .venv/.installed
	$(PY) -m stack jars
	@touch $@

.PHONY: help setup up down reset status logs doctor demo batch bench test test-unit test-integration test-e2e k8s lock sbom check
