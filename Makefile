# The same few commands everywhere; each installs what it needs.
## make serve             the service with the packages of models/, on port 8000 (PORT=8000)
## make test              all tests
## make lint              ruff, mypy, import contracts
## make install           .venv with everything, TensorFlow too (2.1 GB)
## make models            the packages of this repository again (MODELS=folder of Keras files, IMAGES=photos)
## make lock              requirements/ from pyproject.toml
## make docker-plugins    docker compose and buildx, where they are missing
## make base-images       Docker's base images from Debian's packages, where no image registry is reached
PYTHON ?= python3
PORT ?= 8000
MODELS ?= source-models
IMAGES ?= images
BIN := .venv/bin

.PHONY: help install serve test lint lock models

help:
	@sed -n 's/^## //p' Makefile

install: .venv/dev.stamp

.venv/bin/python:
	$(PYTHON) -m venv .venv || { rm -rf .venv; exit 1; }

.venv/bin/uv: requirements/uv.txt | .venv/bin/python
	$(BIN)/python -m pip install --quiet --no-deps --require-hashes -r $<
	touch $@

# One environment; `service` is enough to serve, `dev` holds everything. pip takes 2.5 x as long, but may know a mirror.
PINNED := --quiet --no-deps --require-hashes -r
.venv/%.stamp: requirements/%.txt | .venv/bin/uv
	$(BIN)/uv pip install --python $(BIN)/python --compile-bytecode $(PINNED) $< \
	  || $(BIN)/python -m pip install $(PINNED) $<
	touch $@

serve: .venv/service.stamp
	$(BIN)/python -m service --bind 127.0.0.1:$(PORT)

# Conversions compute, stacks in containers mostly wait: these two beside each other, and after the stacks what computes
# as well. All else is timed, and runs alone. (`| cat`: make 4.3 waits for ever where all it sorts goes to /dev/null.)
BESIDE := tests/deploy/test_docker.py tests/convert $(patsubst %,tests/service/test_%.py,image malformed) \
  $(patsubst %,tests/perf/test_%.py,commands compare plain plan report)
test: .venv/dev.stamp
	$(BIN)/python -m pytest $(patsubst %,--ignore=%,$(filter %.py,$(BESIDE))) tests/test_*.py tests/deploy tests/perf tests/service
	bash -o pipefail -c '$(MAKE) --no-print-directory --jobs 2 --output-sync=target $(BESIDE) 2>&1 | cat'

.PHONY: $(BESIDE)
$(BESIDE):
	$(BIN)/python -m pytest $@

lint: .venv/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy convert service perf
	$(BIN)/lint-imports

# The packages of this repository again, from a folder of Keras files and one of photos: name, photos to calibrate on,
# percent of answers that must stay, percent of the multiplications to leave.
LABELS ?= docs/food11-labels.txt
models: .venv/dev.stamp
	set -e; for model in "mobilenet_v2 512 97 100" "previous 1024 97 100" "resnet101_v2 512 98 52"; do set -- $$model; \
	  $(BIN)/python -m convert $(MODELS)/$$1.keras --name $$1 --images $(IMAGES) --labels $(LABELS) \
	    --calibration $$2 --gate-agreement $$3 --macs $$4 --gate-drop 0.3 --replace; \
	done

# Exact pins with hashes for every supported Python and platform at once, without addresses.
COMPILE := $(BIN)/uv pip compile pyproject.toml --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --quiet
lock: | .venv/bin/uv
	echo uv | $(subst pyproject.toml,-,$(COMPILE)) -o requirements/uv.txt
	$(COMPILE) --all-extras -o requirements/dev.txt
	$(COMPILE) --extra service -c requirements/dev.txt -o requirements/service.txt
	$(COMPILE) --extra service --extra convert -c requirements/dev.txt -o requirements/convert.txt

# Docker where no image registry is reached: base images from Debian's packages, compose and buildx from a newer suite's.
.PHONY: base-images docker-plugins
base-images:
	deploy/base-images

docker-plugins:
	deploy/docker-plugins
