# `make demo` shows the program at work, `make test` runs its tests; neither needs anything before it.
PYTHON ?= python3
INSTALL := .venv/bin/python -m pip --disable-pip-version-check --quiet install -c constraints.txt
RAG := .venv/bin/rag
export XDG_DATA_HOME := $(CURDIR)/.demo/data

.PHONY: demo test base check docs messages clean

demo: .venv/.demo
	@echo "== ingest corpora/ into the knowledge base 'demo'"
	@$(RAG) ingest corpora/*/docs --kb demo
	@echo "== a question in Chinese"
	@$(RAG) ask --kb demo "试用期最长不得超过几个月？"
	@echo "== a question in English about a Chinese document"
	@$(RAG) ask --kb demo "How long must an online shop announce its closing in advance?"
	@echo "== a question that the documents do not answer"
	@$(RAG) ask --kb demo "2026年世界杯决赛在哪座城市举行？"
	@echo "== to ask it more: . .venv/bin/activate; export XDG_DATA_HOME=$(XDG_DATA_HOME)"

test: .venv/.test
	@.venv/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --ignore tests/server
	@.venv/bin/python -m pytest tests/server # alone: its worker runs only when nobody wants a core

base: .venv/.test
	@$(PYTHON) -m venv .base
	@.base/bin/python -m pip --disable-pip-version-check --quiet install -c constraints.txt .
	@BASE_PYTHON=$(CURDIR)/.base/bin/python .venv/bin/python -m pytest tests/test_base_install.py

check: .venv/.test
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/pyright
	.venv/bin/lint-imports

.venv/bin/python:
	@echo "== make .venv"
	@$(PYTHON) -m venv .venv || { echo "no venv module: apt-get install python3-venv"; rm -rf .venv; exit 1; }

.venv/.demo: .venv/bin/python pyproject.toml constraints.txt
	@echo "== install chatglm-rag"
	@$(INSTALL) -e ".[ocr]"
	@touch $@

.venv/.test: .venv/.demo
	@echo "== install the test extras"
	@$(INSTALL) torch
	@$(INSTALL) -e ".[test]"
	@touch $@

docs: .venv/.demo
	.venv/bin/python docs/generate.py
	.venv/bin/python docs/picture.py

messages: .venv/.test
	.venv/bin/python docs/messages.py

clean:
	rm -rf .venv .base .demo build *.egg-info
