# A word typed here -> the lmtemplate command behind it, set up first where it must be. `make help` lists the words.

MAKEFILE := $(subst |,,$(subst | ,|,|$(MAKEFILE_LIST)))
override PACKAGE := lmtemplate
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check
INSTALLED := $(VENV)/installed

space := $(subst |,,| |)

# One `## text` line above each setting is its line in `make help`.
## the run to train
CONFIG ?= configs/quickstart.yaml
## more flags for the command, as in ARGS="--data.batch_size 8"
ARGS ?=
## the folder of the run
RUN ?= runs/$(subst |, ,$(basename $(notdir $(subst $(space),|,$(CONFIG)))))
## the folders of the runs to compare
RUNS ?= runs/*/
## a file of benchmarks/, see docs/performance.md
BENCH ?= overhead
## the port of `make board`
PORT ?= 6006
# Some systems (WSL, Windows) have a NAME or a PROMPT in the environment: these come from the command line alone.
## your own text: a file, a folder, a glob, JSONL
INPUT =
## what to call your text, the experiment, or the renamed package
NAME =
## char, byte, bpe, or a tokenizer.json
TOKENIZER = bpe
## how many tokens a bpe may have (empty: its own default)
VOCAB_SIZE =
## what the model is to continue
PROMPT = The United States

SETTINGS := CONFIG ARGS RUN RUNS BENCH PORT INPUT NAME TOKENIZER VOCAB_SIZE PROMPT

# A setting is text: make expands no $(shell ...) in what was typed, and no shell reads it unquoted.
define line_end


endef
$(if $(findstring $(line_end),$(MAKEFILE)),$(error a folder with a line end in its name: rename it))
RUN_IS_TYPED := $(filter command,$(origin RUN))
as_typed = $(if $(findstring $(line_end),$(value $1)),$(error $1 has a line end in it; give it in one line),$(value $1))
$(foreach s,PYTHON $(SETTINGS),$(eval override $s := $(if $(filter file,$(origin $s)),$$($s),$$(call as_typed,$s))))

# Any text -> one word of the shell, whatever quotes or spaces it has.
quote = '$(subst ','\'',$1)'
# Text, as a person types it in a shell -> its words, each quoted: quotes count, and nothing else does. A pattern,
# or a folder with spaces in its name, is looked for first where files are meant; a file's name is no flag.
split = $(if $(strip $($1)),$(or $(shell $(call quote,$(PYTHON)) -IS -c $(call quote,$(SPLIT)) $(call quote,$($1)) $2 \
	2>/dev/null),$(error $1 cannot be split into words: is a quote open, or PYTHON=$(PYTHON) missing?)))
SPLIT = import glob, shlex, sys; text, is_path = sys.argv[1], sys.argv[2:]; \
	words = [text] if is_path and glob.glob(text) else shlex.split(text); \
	words = [name for word in words for name in is_path and sorted(filter(str.isprintable, glob.glob(word))) or [word]]; \
	print(shlex.join("./" * (is_path != [] and word[:1] == "-") + word for word in words))
args = $(call split,ARGS)

own_text = --input=$(call quote,$(INPUT)) --output=$(call quote,data/$(NAME)) \
	--tokenizer=$(call quote,$(TOKENIZER)) $(if $(VOCAB_SIZE),--vocab_size=$(call quote,$(VOCAB_SIZE)))
for_config = --for_config=$(call quote,$(CONFIG))
run_dir = --run_dir=$(call quote,$(RUN))
# A run_dir in ARGS, or in a config that ARGS names, beats the default of RUN; a RUN that was typed beats both.
own_run_dir = $(or $(findstring --run_dir,$(ARGS)),$(findstring --config,$(ARGS)))
run_dir_and_args = $(if $(RUN_IS_TYPED),$(args) $(run_dir),$(if $(own_run_dir),,$(run_dir)) $(args))

.DEFAULT_GOAL := help
.PHONY: help install data train resume eval sample diagnose report experiment compare sweep reproduce speedrun board course test test-all lint bench clean rename name-given

help: ## this list
	@awk -F ': .*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' < $(call quote,$(MAKEFILE))
	@echo
	@echo 'Settings, as in: make train CONFIG=configs/mine.yaml ARGS="--data.batch_size 8"'
	@$(foreach s,$(SETTINGS),$(s)=$(call quote,$($(s)))) LC_ALL=C awk -F '[ ?:]*= *' \
		'/^## / { text = substr($$0, 4) } /^[A-Z_]+ *[?:]?=/ && text { \
		value = ENVIRON[$$1]; gsub(/[\001-\037\177-\377]/, "?", value); printf "  %-11s%s%s\n", $$1, text, (value == "" ? "" : " [" value "]"); text = "" }' < $(call quote,$(MAKEFILE))

install: $(INSTALLED) ## set up .venv; everything below does so by itself

$(INSTALLED): pyproject.toml constraints.txt requirements.lock
	@$(call quote,$(PYTHON)) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, \
		and this is %d.%d: name one, as in PYTHON=python3.12" % sys.version_info[:2])'
	$(call quote,$(PYTHON)) -m venv $(VENV)
	$(PIP) install --no-deps --require-hashes -r requirements.lock
	$(PIP) install --no-build-isolation -c constraints.txt -e '.[dev]'
	@touch $@

data: $(if $(INPUT),name-given) install ## text -> tokens: what CONFIG needs, or INPUT as data/NAME
	$(PY) -m $(PACKAGE) prepare $(if $(INPUT),$(own_text),$(for_config)) $(args)

train: install ## train CONFIG into RUN, or go on where RUN stopped
	$(if $(findstring --data.path,$(ARGS)),,$(PY) -m $(PACKAGE) prepare $(for_config))
	$(PY) -m $(PACKAGE) fit --config=$(call quote,$(CONFIG)) --resume=auto $(run_dir_and_args)

resume: install ## go on where RUN stopped, with the settings it had
	$(PY) -m $(PACKAGE) fit --config=$(call quote,$(RUN)/config.yaml) $(run_dir) --resume=must $(args)

eval: install ## RUN's best checkpoint -> its validation loss
	$(PY) -m $(PACKAGE) validate $(call quote,$(RUN)) $(args)

sample: install ## RUN's best checkpoint and PROMPT -> text
	$(PY) -m $(PACKAGE) generate $(call quote,$(RUN)) --prompt=$(call quote,$(PROMPT)) $(args)

diagnose: install ## RUN -> healthy, or what is wrong and what to try
	$(PY) -m $(PACKAGE) diagnose $(call quote,$(RUN)) $(args)

report: install ## RUN -> RUN/report.html, everything about it in one page
	$(PY) -m $(PACKAGE) report $(call quote,$(RUN)) $(args)

experiment: name-given install ## CONFIG with ARGS and 3 seeds, as NAME: better than the best?
	$(if $(findstring --data.path,$(ARGS)),,$(PY) -m $(PACKAGE) prepare $(for_config))
	$(PY) -m $(PACKAGE) experiment --config=$(call quote,$(CONFIG)) --run_dir=$(call quote,runs/experiments/$(NAME)) $(args)

compare: install ## RUNS -> a table, and all their curves in compare.html
	@$(PY) -m $(PACKAGE) compare $(call split,RUNS,files) $(args)

sweep: install ## CONFIG for each of ARGS="--over KEY=SPEC": the best
	$(PY) -m $(PACKAGE) sweep --config=$(call quote,$(CONFIG)) $(run_dir) $(args)

reproduce: install ## RUN again, from its manifest: the same bit for bit?
	$(PY) -m $(PACKAGE) reproduce $(call quote,$(RUN)) $(args)

speedrun: install ## best bits per byte in 60 s with CONFIG; ARGS=--check signs it
	$(PY) -m $(PACKAGE) prepare $(for_config)
	PYTHONPATH=. $(PY) benchmarks/speedrun.py --config=$(call quote,$(CONFIG)) \
		$(if $(RUN_IS_TYPED),$(run_dir)) $(args)

board: install ## all of runs/ in TensorBoard, on 127.0.0.1:PORT
	@printf '%s\n' "curves as they are, without smoothing: http://127.0.0.1:"$(call quote,$(PORT))"/?smoothing=0"
	$(PY) -m tensorboard.main --logdir runs --host 127.0.0.1 --port=$(call quote,$(PORT)) $(args)

course: install ## the pictures of docs/course
	PYTHONPATH=. $(PY) docs/course/draw.py $(args)

# A file's tests stay in one process, which shares what is trained once for them. ARGS=-n0 is one process for all.
PARALLEL := -n auto --maxprocesses=4 --dist=loadfile

test: install ## the tests of a minute
	$(PY) -m pytest $(PARALLEL) -m "not slow and not browser" $(args)

test-all: install ## all the tests
	$(PY) -m pytest $(PARALLEL) $(args)

lint: install ## style and types
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

bench: install ## one of benchmarks/, by BENCH
	PYTHONPATH=. $(PY) $(call quote,benchmarks/$(BENCH).py) $(args)

clean: ## remove caches and build output (.venv, data/ and runs/ stay)
	rm -rf -- build dist *.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find .ci $(PACKAGE) tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

rename: name-given install ## call the package NAME, everywhere
	@$(PY) .ci/rename.py $(PACKAGE) $(call quote,$(NAME))
	@$(PIP) uninstall --quiet --yes $(PACKAGE)
	@rm -rf $(INSTALLED) $(PACKAGE).egg-info

name-given:
	@$(if $(NAME),,$(error a NAME is missing, as in: make $(firstword $(MAKECMDGOALS)) NAME=mine))true
