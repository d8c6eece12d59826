# make demo: install and train on handwritten digits.  make test: the tests, test-slow: those at full size, test-browser: pages in Chromium, fuzz: 3,000 damaged files, 20 kills of each experiment.  make check: lint, types, structure.
# make docs: the site, into build/site; a warning is an error.
# make bench: measurements beside other implementations, into docs/performance.md, 25 minutes on two cores; bench-quick: 3.
PYTHON ?= python3
BIN := .venv/bin

# make mini-glue TEXT=FOLDER GLUE=FOLDER: Perceiver IO beside BERT on text, into docs/language.md; hours, in as many parts as wanted.
# make mini-classify DATA=FOLDER: classifying texts from scratch beside TF-IDF, into docs/language.md; about an hour on one core.
# make mini-generation TEXT=FILE: Perceiver AR beside a Transformer on the next byte, into docs/generation.md; half an hour of CPU.
# make mini-flow FLOW=FOLDER: optical flow from generated pairs, about 90 minutes on one core, and its errors on real ones.
# make mini-multimodal DIGITS=FOLDER CLIP=FILE: digits heard and seen, a clip at three compressions, into docs/multimodal.md.
# make mini-starcraft REPLAYS=FOLDER: replays to tables, Transformer and Perceiver IO on their units, into docs/starcraft.md; an hour.
# make throughput DATA=FOLDER BEFORE=CHECKOUT: updates a second of the mini experiments beside those of another version, into docs/training.md; 15 minutes.
# make tables TABLES=FOLDER: models of ten tables beside simple methods, into docs/tables.md; half an hour.
.PHONY: demo test test-slow test-browser fuzz check docs bench bench-quick mini-glue mini-classify mini-generation mini-flow mini-multimodal mini-starcraft throughput tables

demo: .venv/installed
	$(BIN)/perceivers demo

test: .venv/installed
	$(BIN)/pytest --numprocesses 2 --dist loadscope --no-loadscope-reorder

test-slow: .venv/installed
	$(BIN)/pytest -m slow

test-browser: .venv/installed
	$(BIN)/pytest -m browser

fuzz: .venv/installed
	$(BIN)/python -m tests.robustness.fuzz --cases 3000 --seed $(or $(SEED),$(shell date +%s))
	$(BIN)/python -m tests.robustness.kills --kills 20 --seed $(or $(SEED),$(shell date +%s))

check: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: .venv/installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

bench: .venv/installed
	$(BIN)/python benchmarks/run.py
	$(BIN)/python benchmarks/report.py

bench-quick: .venv/installed
	$(BIN)/python benchmarks/run.py --quick --output runs/bench/performance.json
	$(BIN)/python benchmarks/report.py runs/bench/performance.json --output runs/bench/performance.md

results: .venv/installed
	$(BIN)/python benchmarks/results.py $(if $(DATA),--data $(DATA))

mini-glue: .venv/installed
	$(BIN)/python benchmarks/language.py --text $(TEXT) --glue $(GLUE)

mini-classify: .venv/installed
	$(BIN)/python benchmarks/text_classification.py --data $(DATA)

mini-generation: .venv/installed
	$(BIN)/python benchmarks/generation.py --text $(TEXT)

mini-flow: .venv/installed
	test -e runs/flow_mini/metrics.json || $(BIN)/perceivers fit configs/flow/mini.yaml
	$(BIN)/perceivers evaluate runs/flow_mini/model --data $(FLOW)

mini-multimodal: .venv/installed
	$(BIN)/python benchmarks/multimodal.py --digits $(DIGITS) --clip $(CLIP)

mini-starcraft: .venv/installed
	$(BIN)/perceivers prepare-replays $(REPLAYS) runs/tables
	$(BIN)/python benchmarks/starcraft.py --tables runs/tables

throughput: .venv/installed
	$(BIN)/python benchmarks/throughput.py --data $(DATA) --before $(BEFORE)

tables: .venv/installed
	$(BIN)/python benchmarks/tables.py --tables $(TABLES)

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[train,vision,text,starcraft,serve,docs,dev]'
	touch $@
