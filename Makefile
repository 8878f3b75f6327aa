# `make demo` restores the example pictures, `make test` runs the tests: each makes the environment it needs.
# TORCH: the build that tests, training and export use. The default is a CPU build; give your own for a GPU.
PYTHON ?= python3
TORCH  ?= torch==2.13.0

DEMO_ENV := .venv/demo
TEST_ENV := .venv/test
# mypy doesn't know setuptools' package-dir: it reads the installed layout from links.
HOUSE    := .venv/house
# TensorRT's types for mypy. Not in site-packages: there, `import tensorrt` would find them, and nothing in them.
# Five of their signatures are no Python, which stops mypy, hence `sed`.
STUBS    := $(TEST_ENV)/stubs
# Whose Python extension, without the libraries, our code is compared with: a release of each major.
TENSORRTS := 10.16.* 11.4.*

.PHONY: demo test check native gpu-check sanitize fuzz graphs clean

demo: $(DEMO_ENV)/.done
	$(DEMO_ENV)/bin/cmudrn infer examples/weather -o restored --overwrite
	@echo "Look at examples/weather beside restored/."

test: $(TEST_ENV)/.done
	$(PYTHON) tools/build_native.py --optional
	$(TEST_ENV)/bin/pytest -n auto --dist loadfile

# The library of deploy/native anew, after a change of its sources: docs/native.md. NATIVE: options of
# tools/build_native.py, such as NATIVE="--flags=-g -o /tmp/libcmudrn.so".
native:
	$(PYTHON) tools/build_native.py $(NATIVE)

# What only a GPU can tell, offline and within ten minutes, into gpu-report.md and gpu-report.json: docs/gpu.md.
# GPU_ENV names an environment with cmudrn[train,test], and cmudrn[tensorrt] or cmudrn[rtx,cuda], installed; which
# TORCH is there, is yours to choose. GPU_CHECK: options of tools/gpu_check.py.
GPU_ENV ?= $(TEST_ENV)
gpu-check: $(GPU_ENV)/bin/python
	$(GPU_ENV)/bin/python tools/gpu_check.py $(GPU_CHECK)

$(TEST_ENV)/bin/python: | $(TEST_ENV)/.done

check: $(TEST_ENV)/.done
	$(TEST_ENV)/bin/ruff format --check .
	$(TEST_ENV)/bin/ruff check .
	rm -rf $(HOUSE) && mkdir -p $(HOUSE)/cmudrn
	ln -s $(CURDIR)/cmudrn/* $(CURDIR)/train $(CURDIR)/engines $(CURDIR)/deploy $(HOUSE)/cmudrn/
	MYPYPATH=$(HOUSE):$(STUBS) $(TEST_ENV)/bin/mypy -p cmudrn
	MYPYPATH=$(HOUSE):$(STUBS):tests:benchmarks $(TEST_ENV)/bin/mypy tests benchmarks tools examples

# The native kernels under AddressSanitizer, UndefinedBehaviorSanitizer and ThreadSanitizer, on scratch that begins
# as NaN; and on processors without AVX-512 and AVX, where qemu-user is installed. A quarter of an hour; the tests
# run a small part of it. SANITIZE: options of tools/sanitize.py.
sanitize: $(TEST_ENV)/bin/python
	$(TEST_ENV)/bin/python tools/sanitize.py $(SANITIZE)

# The readers of images, fed with unsound files: docs/hostile.md. The tests do 10,000; FUZZ: options of
# tools/fuzz.py, such as FUZZ="--minutes 60 --seed 7".
fuzz: $(TEST_ENV)/bin/python
	PYTHONPATH=tests $(TEST_ENV)/bin/python tools/fuzz.py $(FUZZ)

# Whenever the shipped weights change; a test compares the two.
graphs: $(TEST_ENV)/.done
	$(TEST_ENV)/bin/python tools/ship_graphs.py

# The demo needs no torch: what runs here is what runs on a small device.
$(DEMO_ENV)/.done: pyproject.toml
	$(PYTHON) -m venv $(DEMO_ENV)
	$(DEMO_ENV)/bin/pip install --quiet .
	@touch $@

$(TEST_ENV)/.done: pyproject.toml
	$(PYTHON) -m venv $(TEST_ENV)
	$(TEST_ENV)/bin/pip install --quiet "$(TORCH)"
	$(TEST_ENV)/bin/pip install --quiet --editable ".[train,bench,test,dev]"
	$(TEST_ENV)/bin/pip install --quiet --upgrade --no-deps --target $(STUBS) "tensorrt-stubs==10.13.0.35.1"
	sed -i.orig -e 's/, in: /, in_: /' -e 's/channel_axis: int)/channel_axis: int = 0)/' \
	  $(STUBS)/tensorrt_bindings/tensorrt.pyi
	for release in $(TENSORRTS); do \
	  $(TEST_ENV)/bin/pip download --quiet --no-deps --dest $(TEST_ENV)/bindings \
	    "tensorrt_cu13_bindings==$$release" \
	  || echo "No bindings of TensorRT $$release for this platform: their tests will be skipped."; \
	done
	@touch $@

clean:
	rm -rf .venv build *.egg-info restored deploy/native/libcmudrn.*
