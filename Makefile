# make demo: a WAV in, the answer out, through everything. make test: all tests. Both set up .venv by themselves.
.DEFAULT_GOAL := help
.PHONY: help setup demo loadtest soak bench-compare bench-overhead bench-start bench-products bench-7b bench-quality sizes bench-gpu check-cuda test lint lock clean

BIN := .venv/bin
USERS := 32
SECONDS := 60
FACE := grpc
MINUTES := 30
BASE := f688441
PAIRS := 3
STAMP := .venv/.stamp

help: ## this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "make %-8s %s\n", $$1, $$2}' Makefile

setup: $(STAMP) ## everything into .venv; .venv/bin/personaplex is the command (PYTHON=... picks the interpreter)

$(STAMP): requirements.lock pyproject.toml setup.py $(wildcard model_repository/serving/native/*.[ch]) .ci/setup
	@.ci/setup
	@touch $@

demo: $(STAMP) ## build tiny models, serve them, send tests/data/question.wav, write answer.wav
	@$(BIN)/personaplex demo --input tests/data/question.wav --output answer.wav --folder build/demo

# More of its options in LOADTEST, such as LOADTEST="--fake-device h200"; .venv/bin/python -m loadtest --help has them all.
loadtest: $(STAMP) ## callers in real time against tiny models: USERS=32 SECONDS=60 FACE=grpc|websocket|rest|mixed
	@$(BIN)/python -m loadtest --users $(USERS) --seconds $(SECONDS) --face $(FACE) $(LOADTEST)

soak: $(STAMP) ## callers come and go over every face: does memory stay level? MINUTES=30
	@$(BIN)/python -m loadtest.soak --minutes $(MINUTES) $(SOAK)

# More of its options in COMPARE; .venv/bin/python -m loadtest.compare --help has them all.
bench-compare: $(STAMP) ## this source tree beside a base commit, in alternating runs: BASE=f688441 PAIRS=3
	@$(BIN)/python -m loadtest.compare --base $(BASE) --pairs $(PAIRS) $(COMPARE)

bench-overhead: $(STAMP) ## what the gateway and Triton add to the four graphs, for one user
	@$(BIN)/python -m loadtest.bench.service.overhead

bench-start: $(STAMP) ## how fast a call starts, and what that costs those who talk
	@$(BIN)/python -m loadtest.bench.service.start

bench-products: $(STAMP) ## products with 4- and 8-bit matrices: our kernels beside ONNX Runtime's
	@$(BIN)/python -m loadtest.bench.models.matmuls

# More of its options in BENCH; .venv/bin/python -m loadtest.bench.models.seven_b --help has them all.
bench-7b: $(STAMP) ## random weights of the published size: build, frames, memory, each beside its floor; 25 GB in build/7b
	@$(BIN)/python -m loadtest.bench.models.seven_b $(BENCH)

bench-quality: $(STAMP) ## what each variant costs in quality, on random weights with outlier channels; 6 GB in build/quality
	@$(BIN)/python -m loadtest.bench.models.quality $(BENCH)

sizes: $(STAMP) ## what each variant of the published size takes, on disk and in memory
	@$(BIN)/python -m loadtest.bench.models.sizes

# Needs ONNX Runtime for CUDA in place of the one for CPUs: pip uninstall -y onnxruntime && pip install .[gpu], in .venv.
bench-gpu: $(STAMP) ## steps of 1 to 64 conversations on a GPU, with and without CUDA graphs
	@$(BIN)/python -m loadtest.bench.models.gpu $(BENCH)

check-cuda: $(STAMP) ## without a GPU: is every node of every variant placed on CUDA, and captured? downloads 255 MB
	@$(BIN)/python -m tests.cuda.check

test: $(STAMP) ## run the tests
	@.ci/chromium
	@$(BIN)/python -m pytest

lint: $(STAMP) ## ruff (rules and format) and mypy
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

# setuptools and ziglang build the project itself; nvidia-pytriton is only the carrier of the Triton binary (see .ci/setup);
# moshi's client is tested against, without PyTorch, which only its models need.
lock: $(STAMP) ## resolve pyproject.toml again into requirements.lock (needs uv)
	@printf 'setuptools>=77\nziglang>=0.14,<0.18\n' | uv pip compile pyproject.toml - --extra dev --universal --python-version 3.11 \
		--no-annotate --no-emit-index-url --custom-compile-command "make lock" --quiet -o requirements.lock
	@printf 'nvidia-pytriton==0.7.0\nmoshi==0.2.13\n' >> requirements.lock

clean: ## remove what the other targets made
	@rm -rf .venv build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis answer.wav \
		model_repository/serving/native/*.so
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
