# Every target is listed in docs/reference.md. STACK=compose turns the verbs of the stack to Docker Compose.
.DEFAULT_GOAL := help
PYTHON ?= python3
PY := .venv/bin/python
STACK ?= native
OVERLAY ?= dev
INSTALL = $(PY) -m pip install --quiet --disable-pip-version-check --require-hashes
DEV := .venv/.installed-dev
# for every platform and Python from 3.11 on, so that one lock file serves all machines
UV := .venv/bin/uv pip compile --quiet --no-config --universal --python-version 3.11 --generate-hashes --custom-compile-command "make lock"

ifeq ($(STACK),compose)
READY :=
UP := docker compose up -d --wait
DOWN := docker compose --profile '*' down
RESET := printf 'deletes all data, checkpoints and topics; type reset to go on: ' && read -r word && [ "$$word" = reset ] && docker compose --profile '*' down --volumes
STATUS := docker compose ps -a
HEALTH := curl --noproxy '*' -sS --fail-with-body "http://$$(docker compose port serving 8000)/health/ready" && echo
LOGS := docker compose logs --tail 15 $(L)
BUILD := docker compose build
SHELL_COMMAND := docker compose run --rm --entrypoint pyspark -e PYTHONSTARTUP=stack/shell.py batch
TAIL := docker compose exec producer python -m stack tail
MONITORING := docker compose --profile monitoring up -d --wait
JUPYTER :=
NOTEBOOK := docker compose --profile notebook up -d --wait && docker compose logs notebook
else ifeq ($(STACK),native)
READY := setup
UP := $(PY) -m stack up
DOWN := $(PY) -m stack down
RESET := $(PY) -m stack reset
STATUS := $(PY) -m stack status
HEALTH := $(PY) -m stack health
LOGS := $(PY) -m stack logs $(L)
BUILD := true
SHELL_COMMAND := $(PY) -m stack shell
TAIL := $(PY) -m stack tail
MONITORING := $(PY) -m stack monitor
JUPYTER := .venv/.installed-notebook
NOTEBOOK := eval "$$($(PY) -m stack env)" && .venv/bin/jupyter lab notebooks
else
$(error STACK=$(STACK): allowed is native or compose)
endif

help: ## this list
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-18s %s\n", $$1, $$2}'

setup: .venv/.ready lib/.verified ## make .venv, install the packages that run, fetch and verify the jars beside them

up: $(READY) ## start the stack and wait until all of it answers; start again what died
	@$(UP)

down: $(READY) ## stop it; data stays
	@$(DOWN)

restart: $(READY) ## stop it and start it again
	@$(DOWN) && $(UP)

reset: $(READY) ## stop it and wipe data, checkpoints and topics together (asks first)
	@$(RESET)

status: $(READY) ## one line per service
	@$(STATUS)

health: $(READY) ## has the serving layer something right to say? Prints its reasons
	@$(HEALTH)

logs: $(READY) ## the last lines of every log (L=ingest for one)
	@$(LOGS)

build: $(READY) ## install what is needed: packages and jars, or the images
	@$(BUILD)

spark-shell: $(READY) ## PySpark with Kafka's connector, HDFS and the master dataset ready
	@$(SHELL_COMMAND)

kafka-tail: $(READY) ## print the records of a topic as they come (T=auth_topic)
	@$(TAIL) $(or $(T),auth_topic)

monitoring: $(READY) ## watch it: Prometheus, and with STACK=compose Grafana, too
	@$(MONITORING)

notebook: $(JUPYTER) ## JupyterLab with the notebooks, on the running system
	@$(NOTEBOOK)

clean: ## delete caches and temporary files; data, packages and jars stay
	rm -rf .cache .pytest_cache .mypy_cache .ruff_cache .hypothesis artifacts spark-warehouse
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +

doctor: setup ## find what would fail, and the command that mends it
	@$(PY) -m stack doctor

demo: setup ## run everything on live events and prove the answers
	@$(PY) -m stack.demo

batch: setup ## recompute the batch views once (DOMAIN=cards for another domain)
	@$(PY) batch_layer.py

bench: setup ## measure CPU seconds per million events
	@$(PY) -m bench

test: test-unit ## all tests: unit, integration, end to end
	$(PY) -m pytest tests/integration tests/e2e

test-unit: $(DEV) ## tests that need no services, a process per core
	$(PY) -m pytest tests/unit -n auto --maxprocesses 4 --dist loadfile
	$(PY) -m pytest tests/simulation -q -n auto --maxprocesses 4

simulate: $(DEV) ## so many schedules of the simulator (N=100000)
	SIMULATE=$(or $(N),100000) $(PY) -m pytest tests/simulation/test_simulation.py -q -n auto --maxprocesses 4

test-integration: $(DEV) ## tests on the real stack, one layer at a time
	$(PY) -m pytest tests/integration

test-e2e: $(DEV) ## tests of all layers together
	$(PY) -m pytest tests/e2e

test-compose: $(DEV) ## the Compose stack on a real Docker Engine, killed, paused and cut off
	$(PY) -m pytest tests/compose

k8s: setup ## print the Kubernetes manifests (OVERLAY=dev), to be piped into kubectl apply -f -
	@$(PY) k8s/render.py $(OVERLAY)

lock: $(DEV) ## pin all packages with their hashes, after a change of requirements*.txt
	$(UV) --output-file requirements.lock requirements.txt
	$(UV) --constraint requirements.lock --output-file requirements-notebook.lock requirements-notebook.txt
	$(UV) --constraint requirements-notebook.lock --output-file requirements-cassandra.lock requirements-cassandra.txt
	$(UV) --constraint requirements-notebook.lock --constraint requirements-cassandra.lock --output-file requirements-dev.lock requirements-dev.txt

sbom: $(DEV) ## write sbom.json: every package and jar with version and licence
	@$(PY) -m stack.sbom

check: $(DEV) ## format, lint, types
	.venv/bin/ruff format --check . && .venv/bin/ruff check . && .venv/bin/mypy

.venv/.ready lib/.verified: requirements.lock stack/jars.lock stack/ivy.xml
	@$(PYTHON) -m stack.setup
	@touch .venv/.ready lib/.verified

# What one target needs more, besides the packages that run.
.venv/.installed-%: requirements-%.lock | setup
	$(INSTALL) -r $<
	@touch $@

.PHONY: help setup up down restart reset status health logs build spark-shell kafka-tail monitoring notebook clean doctor demo batch bench \
	test test-unit simulate test-integration test-e2e test-compose k8s lock sbom check
