PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup run lab test test-fast notebooks bench soak gpu-check check readme clean

setup: .venv/.done  ## create .venv with everything pinned
.venv/.done: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q -e '.[dev]' -c constraints.txt
	touch $@

run: setup  ## the whole path on the tiny profile: SFT, pairs, DPO, comparison, report
	$(BIN)/python -m dpo_kit run

lab: setup  ## open the workbook in JupyterLab
	$(BIN)/jupyter lab --notebook-dir=. notebooks/00_start_here.ipynb

test: setup  ## all tests, every notebook executed
	$(BIN)/python -m pytest --nbmake --nbmake-timeout=900 tests notebooks

test-fast: setup  ## for daily work: what takes seconds, two files at a time; without notebooks, browser and slow tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile -m "not slow and not browser" tests

notebooks: setup  ## execute notebooks/py into notebooks/ from clean kernels, outputs stored
	$(BIN)/python -m tools.build_notebooks

bench: setup  ## what is fast and what is not: the run by stage, generation, a DPO step against stock TRL
	$(BIN)/python -m benchmarks

soak: setup  ## what takes hours: kills by the hundred, fuzzing, simulated coverage, mutants, every notebook in a browser
	$(BIN)/python -m benchmarks.soak

gpu-check: setup  ## memory against its estimate, speed and losses on a GPU, where there is one
	$(BIN)/python -m benchmarks.gpu_check

check: setup  ## lint, format, types, stored notebooks, the CI workflow, the citation file
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m tools.check_notebooks
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/ci.yml
	$(BIN)/zizmor --offline --quiet --persona pedantic .github/workflows
	$(BIN)/check-jsonschema --builtin-schema vendor.citation-file-format CITATION.cff

readme: setup  ## put the table and the figure of runs/tiny into README.md and data/runs/
	$(BIN)/python -m tools.refresh_readme

clean:  ## remove what runs made
	rm -rf runs build *.egg-info
