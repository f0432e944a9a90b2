# Everything that a contributor or a CI machine does, by name. Needs Python 3.10 or newer and a
# package registry; each target sets up what it needs in $(VENV), and only that.
#
# pip's own settings apply (PIP_INDEX_URL, PIP_EXTRA_INDEX_URL, PIP_FIND_LINKS, pip.conf): name an
# index with CPU builds of torch there if the default one offers CUDA builds and you want neither
# their size nor a GPU. constraints.txt accepts any build of the tested torch version.

.DEFAULT_GOAL := help
.NOTPARALLEL:

VENV ?= .venv
VLLM_VENV ?= .venv-vllm
PYTEST_ARGS ?=
BENCH_ARGS ?=

# Each worker is a process with torch of its own. More threads than cores would cost a test twice
# its time, so every worker has one; set OMP_NUM_THREADS to have it otherwise.
WORKERS := -n auto --maxprocesses 8 --dist worksteal
OMP_NUM_THREADS ?= 1

EMBEDDED := tests/serving/test_vllm_embedded.py

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
INSTALL := $(PIP) install --quiet --constraint constraints.txt
CORE := pyproject.toml constraints.txt
LANGCHAIN := integrations/langchain/pyproject.toml
LLAMA_INDEX := integrations/llama_index/pyproject.toml

FRAMEWORKS := $(abspath $(VENV))/frameworks
LOWEST_LANGCHAIN := $(FRAMEWORKS)/langchain/lowest/.ready
NEWEST_LANGCHAIN := $(FRAMEWORKS)/langchain/newest/.ready
LOWEST_LLAMA_INDEX := $(FRAMEWORKS)/llama_index/lowest/.ready

# The tests of an adapter on one of its lists of versions.
define on-frameworks
	PYTHONPATH=$(FRAMEWORKS)/$(1)/$(2) $(BIN)/python scripts/frameworks.py $(1) $(2) $(WORKERS) $(PYTEST_ARGS)
endef

# Over the versions of constraints.txt, and without the dependencies: the lists say why.
define install-frameworks
	@rm -rf $(@D)
	@$(PIP) install --quiet --no-deps --ignore-requires-python --target $(@D) -r $<
	@touch $@
endef

# A stamp says what is installed; it is older than what it was installed from when that changes.
PIP_READY := $(VENV)/.ready-pip
DEMO_READY := $(VENV)/.ready-demo
TEST_READY := $(VENV)/.ready-test
LINT_READY := $(VENV)/.ready-lint
DOCS_READY := $(VENV)/.ready-docs
RELEASE_READY := $(VENV)/.ready-release

.PHONY: help demo test frameworks serving lint typecheck docs wheels bench streambench needle format clean

help: ## Show the targets
	@grep -E '^[a-z]+:.*##' Makefile | sed -E 's/^([a-z]+):[^#]*## (.*)/  make \1\t\2/' | expand -t 20

demo: $(DEMO_READY) ## Guard a LangChain chain with the bundled checkpoint
	$(BIN)/python examples/quickstart_langchain.py

test: export OMP_NUM_THREADS := $(OMP_NUM_THREADS)
test: $(TEST_READY) ## Run the tests, on all cores
	$(BIN)/python -m pytest -q $(WORKERS) $(PYTEST_ARGS)

frameworks: export OMP_NUM_THREADS := $(OMP_NUM_THREADS)
frameworks: $(TEST_READY) $(LOWEST_LANGCHAIN) $(NEWEST_LANGCHAIN) $(LOWEST_LLAMA_INDEX) ## Run the tests on the lowest and newest LangChain and LlamaIndex
	$(call on-frameworks,langchain,lowest)
	$(call on-frameworks,langchain,newest)
	$(call on-frameworks,llama_index,lowest)

serving: $(TEST_READY) ## Run the tests on a real vLLM, which gets an environment of its own
	@sh scripts/vllm_env.sh $(VLLM_VENV)
	GUARDRAILS_QWEN_VLLM=$(abspath $(VLLM_VENV))/bin/python $(BIN)/python -m pytest -q \
	  tests/serving --ignore $(EMBEDDED) $(PYTEST_ARGS)
	GUARDRAILS_QWEN_VLLM=$(abspath $(VLLM_VENV))/bin/python $(VLLM_VENV)/bin/python -m pytest -q \
	  $(EMBEDDED) $(PYTEST_ARGS)

lint: $(LINT_READY) ## Check style and format
	$(BIN)/ruff check
	$(BIN)/ruff format --check

needle: $(TEST_READY) ## Hide harmful sentences in long texts, and count what is found
	$(BIN)/python -m benchmarks.needle

format: $(LINT_READY) ## Mend what can be mended of what `lint` finds
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

typecheck: $(TEST_READY) $(LINT_READY) $(NEWEST_LANGCHAIN) ## Check types, strictly
	$(BIN)/pyright
	$(BIN)/pyright -p integrations/langchain/frameworks/pyrightconfig.json

docs: $(DOCS_READY) ## Build the documentation into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

wheels: $(RELEASE_READY) ## Build the wheels into dist/ and try them in clean environments
	$(BIN)/python scripts/smoke_wheels.py

bench: $(TEST_READY) ## Compare with the recipe and any-guardrail; results in .bench/
	$(BIN)/python -m benchmarks.compare $(BENCH_ARGS)

streambench: $(TEST_READY) ## Compare streaming with the published recipe and others; results in .bench/
	$(BIN)/python -m benchmarks.streaming $(BENCH_ARGS)

clean: ## Remove what the targets made, environments included
	rm -rf $(VENV) $(VLLM_VENV) dist site .bench .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(PIP_READY): scripts/create_venv.sh
	@sh scripts/create_venv.sh $(VENV)
	@touch $@

$(DEMO_READY): $(PIP_READY) $(CORE) $(LANGCHAIN)
	@echo "Installing the package, torch and LangChain into $(VENV) …"
	@$(INSTALL) -e '.[local]' -e integrations/langchain
	@touch $@

$(TEST_READY): $(DEMO_READY) $(LLAMA_INDEX)
	@echo "Installing the tests' dependencies into $(VENV) …"
	@$(INSTALL) -e '.[local,remote,cache,calibration]' -e 'integrations/langchain[agents]' \
	  -e integrations/llama_index --group test
	@touch $@

$(FRAMEWORKS)/langchain/%/.ready: integrations/langchain/frameworks/%.txt $(PIP_READY)
	$(install-frameworks)

$(FRAMEWORKS)/llama_index/%/.ready: integrations/llama_index/frameworks/%.txt $(PIP_READY)
	$(install-frameworks)

$(LINT_READY): $(PIP_READY) $(CORE)
	@$(INSTALL) --group lint
	@touch $@

$(DOCS_READY): $(PIP_READY) $(CORE)
	@$(INSTALL) --group docs
	@touch $@

$(RELEASE_READY): $(PIP_READY) $(CORE)
	@$(INSTALL) --group release
	@touch $@
