PYTHON ?= python3
WORKERS ?= 2
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: demo test bench check clean

# everything the other targets need; again whenever the dependencies change
$(STAMP): pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $(STAMP)

demo: $(STAMP)
	$(BIN)/acclimate run recipes/reviews.yaml

test: $(STAMP)
	$(BIN)/python -m pytest -m 'not gpu and not network' -n $(WORKERS) --dist loadfile --durations 12
	$(BIN)/python -m pytest -m network --force-enable-socket tests/test_fetch.py

# beside its peers, each in an environment of its own, which is made when it is first needed; one work alone: make bench WORK=sft-lora
bench: $(STAMP)
	$(BIN)/python -m bench $(if $(WORK),--work $(WORK))

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf .venv .bench build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
