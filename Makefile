# Two commands make a working project out of a fresh checkout: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# Real images of a stain that is neither domain, where they lie beside the checkout: the router should abstain from them.
THIRD := $(wildcard $(abspath ../shared/data/osteosarcoma_he))

.PHONY: demo test lab setup clean
setup: $(READY)

# A CPU build of torch serves unless BONEHISTO_TORCH names another requirement, e.g. torch==2.13.0+cu130.
$(READY): settings.ini constraints.txt setup.py
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --upgrade pip setuptools wheel
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]'
	touch $@

demo: $(READY)
	test -f data/phantom/data_manifest.yaml || $(BIN)/bonehisto phantom data/phantom
	$(BIN)/bonehisto run data_manifest.yaml --out runs/demo --profile demo $(if $(THIRD),-p route.third_domain=$(THIRD))

# Two processes with one thread each, which keep what they compile; the project tests first, since everything else stands on the export. Files of whole runs begin, for they take longest.
ON_PATH := PYTHONDONTWRITEBYTECODE= PATH="$(CURDIR)/$(BIN):$$PATH" BONEHISTO_THREADS=1 BONEHISTO_WORKERS=1 OMP_NUM_THREADS=1
LONGEST := $(addprefix tests/test_,pipeline.py run_stops.py wheel.py)
test: $(READY)
	$(ON_PATH) $(BIN)/python -m pytest -q -n 2 tests/test_project.py
	$(ON_PATH) $(BIN)/nbdev_test --n_workers 2
	$(ON_PATH) $(BIN)/python -m pytest -q -rs -n 2 --dist loadfile --no-loadscope-reorder --durations 10 $(LONGEST) tests --ignore tests/test_project.py

lab: $(READY)
	$(BIN)/jupyter lab --notebook-dir nbs

clean:
	rm -rf build dist *.egg-info
