# make demo: ask the small speaking model a question. make test: the short tests. Every target sets up .venv itself.
.DEFAULT_GOAL := help
.PHONY: help setup demo docs wheel loadtest soak bench-compare bench-overhead bench-libraries bench-answers bench-start bench-kernels bench-7b bench-quality sizes bench-gpu check-cuda train-speaking test test-long test-clients lint lock clean

BIN := .venv/bin
USERS := 32
SECONDS := 60
API := grpc
MINUTES := 30
WORKERS := 4
BASE := f688441
PAIRS := 3
STAMP := .venv/.stamp
DEV := .venv/.dev-stamp
# Tests and load tests start hundreds of processes: without its bytecode each would compile the project anew.
export PYTHONDONTWRITEBYTECODE :=

help: ## this list
	@awk -F ':.*## ' '/^##@ / {printf "\n%s\n", substr($$0, 5)} /^[a-z0-9-]+:.*## / {printf "  make %-15s %s\n", $$1, $$2}' Makefile

##@ Use

setup: $(STAMP) ## install what the service needs into .venv; .venv/bin/personaplex runs it (PYTHON=... picks the interpreter)

$(STAMP): requirements.lock requirements-build.lock pyproject.toml setup.py $(wildcard model_repository/serving/native/*.[ch]) .ci/setup
	@.ci/setup
	@touch $@

$(DEV): $(STAMP) requirements-dev.lock
	@.venv/bin/python -m pip --disable-pip-version-check install --quiet --no-compile --no-deps --only-binary :all: -r requirements-dev.lock
	@touch $@

demo: $(STAMP) ## serve the small speaking model, ask it a recorded question, write answer.wav
	@$(BIN)/personaplex demo --output answer.wav --folder build/demo

##@ Measure the service

# More of its options in LOADTEST, such as LOADTEST="--fake-device h200"; .venv/bin/python -m loadtest --help has them all.
loadtest: $(DEV) ## load the small speaking model with users in real time: USERS=32 SECONDS=60 API=grpc|websocket|live|realtime|twilio|rest|mixed
	@$(BIN)/python -m loadtest --users $(USERS) --seconds $(SECONDS) --api $(API) $(LOADTEST)

soak: $(DEV) ## start and end conversations over every API, check that memory stays level: MINUTES=30
	@$(BIN)/python -m loadtest.soak --minutes $(MINUTES) $(SOAK)

# More of its options in COMPARE; .venv/bin/python -m loadtest.compare --help has them all.
bench-compare: $(DEV) ## this source tree beside a base commit, in alternating runs: BASE=f688441 PAIRS=3
	@$(BIN)/python -m loadtest.compare --base $(BASE) --pairs $(PAIRS) $(COMPARE)

bench-overhead: $(DEV) ## what the gateway and Triton add to the four graphs, for one user
	@$(BIN)/python -m loadtest.bench.service.overhead

bench-libraries: $(DEV) ## calls to Triton and Opus in Ogg: our code beside libraries
	@$(BIN)/python -m loadtest.bench.service.libraries

bench-answers: $(DEV) ## how well the small speaking model answers: intents, turns, interruptions, roles, voices
	@$(BIN)/python -m loadtest.bench.service.answers $(BENCH)

# On a fake GPU: BENCH="--fake-device h200 --users 40 --columns 250".
bench-start: $(DEV) ## how fast a conversation starts, and what its prefill costs live users
	@$(BIN)/python -m loadtest.bench.service.start $(BENCH)

##@ Measure the models

bench-kernels: $(DEV) ## our CPU kernels beside ONNX Runtime's: 4- and 8-bit matmuls, both halves of Mimi
	@$(BIN)/python -m loadtest.bench.models.kernels

# More of its options in BENCH; .venv/bin/python -m loadtest.bench.models.seven_b --help has them all.
bench-7b: $(DEV) ## random weights of the published size: build, frames, memory, each beside its floor; 25 GB in build/7b
	@$(BIN)/python -m loadtest.bench.models.seven_b $(BENCH)

bench-quality: $(DEV) ## what each variant costs in quality, on random weights with outlier channels; 6 GB in build/quality
	@$(BIN)/python -m loadtest.bench.models.quality $(BENCH)

sizes: $(DEV) ## what each variant of the published size takes, on disk and in memory
	@$(BIN)/python -m loadtest.bench.models.sizes

# Needs ONNX Runtime for CUDA in place of the one for CPUs: pip uninstall -y onnxruntime && pip install .[gpu], in .venv.
bench-gpu: $(DEV) ## frames of 1 to 128 conversations on a GPU, beside estimates, in several arms
	@$(BIN)/python -m loadtest.bench.models.gpu $(BENCH)

check-cuda: $(DEV) ## without a GPU: is every node of every variant placed on CUDA, and captured? downloads 255 MB
	@$(BIN)/python -m tests.cuda.check

##@ Train

# PyTorch stays out of .venv. Stopped with Ctrl-C, it goes on where it was. Needs programs: docs/speaking-model.md.
train-speaking: build/speaking/venv/.stamp ## train the small speaking model from nothing: hours; build/speaking has it
	@build/speaking/venv/bin/python -m model_repository.synthetic.speaking build/speaking/work build/speaking

build/speaking/venv/.stamp: pyproject.toml
	@python3 -m venv build/speaking/venv
	@build/speaking/venv/bin/python -m pip --disable-pip-version-check install --quiet --editable ".[train]"
	@touch $@

##@ Develop

# Some tests are marked `long`; every other one has a short form. WORKERS: processes that share the tests.
test: $(DEV) ## run the tests in their short form; 5 to 6 minutes on two cores: WORKERS=4
	@.ci/chromium
	@.ci/haproxy
	@.ci/node
	@$(BIN)/python -m pytest -n $(WORKERS)

test-long: $(DEV) ## run what `make test` leaves out: all examples, long conversations, soak, the benchmarks' own tests, check-cuda
	@.ci/haproxy
	@.ci/node
	@$(BIN)/python -m pytest -n $(WORKERS) --long -m "not alone" --ignore tests/clients
	@$(BIN)/python -m pytest --long -m alone --ignore tests/clients

test-clients: $(DEV) ## run calls of unmodified clients (LiveKit, Pipecat, OpenAI, pydantic-ai): installs them from PyPI and npm
	@.ci/grpc
	@$(BIN)/python -m pytest --long tests/clients

lint: $(DEV) ## ruff (rules and format), actionlint, mypy and the allowed imports
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/actionlint
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache

docs: $(DEV) ## build the documentation in build/site, strictly: every page and link must be right
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build

wheel: $(DEV) ## build sdist and wheel in build/dist
	@$(BIN)/python -m build --outdir build/dist

lock: ## resolve pyproject.toml again into requirements*.lock (needs uv)
	@.ci/lock

clean: ## remove what the other targets made
	@rm -rf .venv build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis answer.wav \
		model_repository/serving/native/*.so
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
