# A word typed here -> the lmtemplate command behind it, set up first where it must be. `make help` lists the words.

PACKAGE := lmtemplate
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check
INSTALLED := $(VENV)/installed

# One `## text` line above each setting is its line in `make help`.
## the run to train
CONFIG ?= configs/quickstart.yaml
## more flags for the command, as in ARGS="--data.batch_size 8"
ARGS ?=
## the folder of the run
RUN ?= runs/$(basename $(notdir $(CONFIG)))
## the folders of the runs to compare
RUNS ?= runs/*
## overhead, house; or verdicts, reliability (half an hour)
BENCH ?= overhead
## the port of `make board`
PORT ?= 6006
# Some systems (WSL, Windows) have a NAME or a PROMPT in the environment: these come from the command line alone.
## your own text: a file, a folder, a glob, JSONL
INPUT =
## what to call your text, or the renamed package
NAME =
## char, byte, bpe, or a tokenizer.json
TOKENIZER = bpe
## how many tokens a bpe may have (empty: its own default)
VOCAB_SIZE =
## what the model is to continue
PROMPT = The United States

SETTINGS := CONFIG ARGS RUN RUNS BENCH PORT INPUT NAME TOKENIZER VOCAB_SIZE PROMPT

# Any text -> one word of the shell, whatever quotes or spaces it has. `value` keeps a `$` as it was typed.
quote = '$(subst ','\'',$(1))'
own_text = --input $(call quote,$(value INPUT)) --output $(call quote,data/$(value NAME)) \
	--tokenizer $(call quote,$(TOKENIZER)) $(if $(VOCAB_SIZE),--vocab_size $(VOCAB_SIZE))
for_config = --for_config $(call quote,$(CONFIG))
run_dir = --run_dir $(call quote,$(RUN))
# A run_dir in ARGS, or in a config that ARGS names, beats the default of RUN; a RUN that was typed beats both.
own_run_dir = $(or $(findstring --run_dir,$(ARGS)),$(findstring --config,$(ARGS)))
run_dir_and_args = $(if $(filter command,$(origin RUN)),$(ARGS) $(run_dir),$(if $(own_run_dir),,$(run_dir)) $(ARGS))

.DEFAULT_GOAL := help
.PHONY: help install data train resume eval sample diagnose report compare reproduce board test test-all lint bench clean rename name-given

help: ## this list
	@awk -F ': .*## ' '/^[a-z-]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' Makefile
	@echo
	@echo 'Settings, as in: make train CONFIG=configs/mine.yaml ARGS="--data.batch_size 8"'
	@$(foreach s,$(SETTINGS),$(s)=$(call quote,$($(s)))) awk -F '[ ?:]*= *' \
		'/^## / { text = substr($$0, 4) } /^[A-Z_]+ *[?:]?=/ && text { \
		value = ENVIRON[$$1]; printf "  %-11s%s%s\n", $$1, text, value == "" ? "" : " [" value "]"; text = "" }' Makefile

install: $(INSTALLED) ## set up .venv; everything below does so by itself

$(INSTALLED): pyproject.toml constraints.txt requirements.lock
	@$(PYTHON) -c 'import sys; v = "%d.%d" % sys.version_info[:2]; sys.exit(sys.version_info < (3, 11) and \
		"Python 3.11 or newer is needed, and $(PYTHON) is %s: name one, as in PYTHON=python3.12" % v)'
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --no-deps --require-hashes -r requirements.lock
	$(PIP) install --no-build-isolation -c constraints.txt -e '.[dev]'
	@touch $@

data: $(if $(value INPUT),name-given) install ## text -> tokens: what CONFIG needs, or INPUT as data/NAME
	$(PY) -m $(PACKAGE) prepare $(if $(value INPUT),$(own_text),$(for_config)) $(ARGS)

train: install ## train CONFIG into RUN, or go on where RUN stopped
	$(if $(findstring --data.path,$(ARGS)),,$(PY) -m $(PACKAGE) prepare $(for_config))
	$(PY) -m $(PACKAGE) fit --config $(call quote,$(CONFIG)) --resume auto $(run_dir_and_args)

resume: install ## go on where RUN stopped, with the settings it had
	$(PY) -m $(PACKAGE) fit --config $(call quote,$(RUN)/config.yaml) $(run_dir) --resume must $(ARGS)

eval: install ## RUN's best checkpoint -> its validation loss
	$(PY) -m $(PACKAGE) validate $(call quote,$(RUN)) $(ARGS)

sample: install ## RUN's best checkpoint and PROMPT -> text
	$(PY) -m $(PACKAGE) generate $(call quote,$(RUN)) --prompt $(call quote,$(value PROMPT)) $(ARGS)

diagnose: install ## RUN -> healthy, or what is wrong and what to try
	$(PY) -m $(PACKAGE) diagnose $(call quote,$(RUN)) $(ARGS)

report: install ## RUN -> RUN/report.html, everything about it in one page
	$(PY) -m $(PACKAGE) report $(call quote,$(RUN)) $(ARGS)

compare: install ## RUNS -> a table, and all their curves in compare.html
	$(PY) -m $(PACKAGE) compare $(RUNS) $(ARGS)

reproduce: install ## RUN again, from its manifest: the same bit for bit?
	$(PY) -m $(PACKAGE) reproduce $(call quote,$(RUN)) $(ARGS)

board: install ## all of runs/ in TensorBoard, on 127.0.0.1:PORT
	$(PY) -m tensorboard.main --logdir runs --host 127.0.0.1 --port $(PORT) $(ARGS)

test: install ## the tests of a minute and a half
	$(PY) -m pytest -m "not slow and not browser" $(ARGS)

test-all: install ## all the tests
	$(PY) -m pytest $(ARGS)

lint: install ## style and types
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

bench: install ## one of benchmarks/, by BENCH
	PYTHONPATH=. $(PY) benchmarks/$(BENCH).py $(ARGS)

clean: ## remove caches and build output (.venv, data/ and runs/ stay)
	rm -rf build dist *.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find .ci $(PACKAGE) tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

rename: name-given install ## call the package NAME, everywhere
	@$(PY) .ci/rename.py $(PACKAGE) $(call quote,$(value NAME))
	@$(PIP) uninstall --quiet --yes $(PACKAGE)
	@rm -rf $(INSTALLED) $(PACKAGE).egg-info

name-given:
	@$(if $(NAME),,$(error a NAME is missing, as in: make $(firstword $(MAKECMDGOALS)) NAME=mine))true
