# Two commands are all that a new user needs: `make demo` and `make test`.

PYTHON ?= python3
BIN := .venv/bin
# The tests of a file stay in one process, which makes their fixtures once. tests/conftest.py says which files come first;
# pytest-xdist would begin with those of the most tests and end with the longest. One process more than there are cores,
# because some tests wait.
UNIT := $(BIN)/pytest -m "not e2e and not chaos and not further" -n $$(($$(nproc) + 1)) --maxprocesses 8 --dist loadfile --no-loadscope-reorder
# Two end-to-end tests at a time, of different files: each waits for its processes much of the time.
E2E := $(BIN)/pytest -m "e2e and not chaos and not further" -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: demo test peers viewer check unit lint docs pictures format lock audit release images deb bench learning stoic lungs canary attack further chaos soak fuzz flower-drill clean

demo: .venv/installed  ## the whole loop on synthetic hospitals, on this machine
	$(BIN)/fedthorax demo

test: .venv/installed peers  ## everything: style, types, documentation, unit tests, end-to-end tests with real processes, a few benchmarks
	@$(MAKE) --no-print-directory --jobs 2 --output-sync lint docs
	@# Side by side. The unit tests use what the end-to-end tests leave of all cores, and give way, so that tests with time
	@# limits are not slowed. Repetitions of a fault that are marked `chaos` are part of `make chaos`. More networks and
	@# sizes are part of `make further`. What runs in the background would else ignore Ctrl-C.
	@mkdir -p build
	@env --default-signal=INT,QUIT nice -n 5 $(UNIT) >build/unit.log 2>&1 & unit=$$!; \
	$(E2E); e2e=$$?; \
	wait $$unit; unit=$$?; cat build/unit.log; \
	$(BIN)/python benchmarks/short.py; short=$$?; exit $$((unit || e2e || short))

peers:  ## what the tests talk to: a PACS, DICOM tools, a browser, ... from Debian's packages, and the viewer from npm
	.ci/peers
	@{ command -v npm && $(MAKE) --no-print-directory viewer; } >/dev/null || echo "no npm: tests of the full viewer are skipped"

viewer:  ## the full viewer of the clinician's page (NiiVue) into the package, by the lock file; needs npm
	npm ci --prefix viewer --ignore-scripts --no-audit --no-fund
	install -m 644 viewer/node_modules/@niivue/niivue/dist/index.js pipeline/clinic/page/static/niivue.js
	@# Its package brings no licence file, and its bundle holds what it depends on; all of them ask to be named. What only
	@# the tests use is left out.
	cd viewer && tail -n +1 niivue.LICENSE $$(find $$(npm ls --all --omit=dev --parseable | sed "1d;s|^$$PWD/||") -iname 'license*' | sort -u) \
		> ../pipeline/clinic/page/static/niivue.LICENSE.txt

check: .venv/installed  ## the quick loop: style, types, imports, and beside them the fast unit tests on all cores
	@# Lint uses one core, and tests wait now and then. What runs in the background would else ignore Ctrl-C.
	@mkdir -p build
	@env --default-signal=INT,QUIT $(MAKE) --no-print-directory lint >build/lint.log 2>&1 & lint=$$!; \
	$(BIN)/pytest -m "not e2e and not chaos and not further and not slow" -n $$(nproc) --maxprocesses 8 --dist worksteal; tests=$$?; \
	wait $$lint; lint=$$?; cat build/lint.log; exit $$((lint || tests))

unit: .venv/installed  ## the tests that start no process
	$(UNIT)

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m tests.docstrings

docs: .venv/installed  ## the documentation as a site in build/docs; a broken link is an error; needs no network
	$(BIN)/sphinx-build --fresh-env --quiet --nitpicky --fail-on-warning --keep-going docs build/docs

pictures: .venv/installed  ## what the three users see, from the demo's folder into docs/pictures; needs Chromium and `make demo`
	$(BIN)/python -m tests.pictures demo docs/pictures

format: .venv/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lock: .venv/installed  ## the libraries of each role with their hashes, after a change in pyproject.toml or constraints.txt
	$(BIN)/python -m federation.delivery.locks

audit: .venv/installed  ## known vulnerabilities of the locked libraries; AUDIT="pypi.zip npm.zip": exports of OSV, downloaded before
	$(BIN)/python -m federation.delivery.audit $(AUDIT)

release: .venv/installed viewer  ## every form of the release into dist/; needs npm; RELEASE="--key FILE --osv FILE --role node --python 3.12"
	$(BIN)/python -m federation.delivery.make_release $(RELEASE)

images: .venv/installed  ## container images from the bundles of a release; IMAGES="dist/fedthorax-VERSION --trust KEY.pub"; needs root
	$(BIN)/python -m federation.delivery.images $(IMAGES)

deb:  ## a package for Debian and Ubuntu into dist/; BUNDLE=DIR: an unpacked, verified bundle for one Python; needs no library
	$(PYTHON) -m federation.delivery.debian_package $(BUNDLE)

bench: .venv/installed peers  ## speed and memory as ratios, how well federations learn; written to benchmarks/results/
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[bench]'
	$(BIN)/python benchmarks/run.py

learning: .venv/installed  ## how well federations learn with the defaults: some four hours on two cores, continues if interrupted
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/run.py learning

stoic: .venv/installed  ## the whole experiment on the public folder of STOIC2021: DATA=DIR, STOIC="--seeds 1 --split skewed"; continues if interrupted
	@test -n "$(DATA)" || { echo "DATA=DIR: the folder with data/mha and metadata/reference.csv; see docs/stoic2021.md" >&2; exit 2; }
	$(BIN)/python benchmarks/stoic2021.py "$(DATA)" $(STOIC)

lungs: .venv/installed  ## trains the lung segmenter again into build/, from synthetic bodies alone, and evaluates the package's one
	@mkdir -p build
	OMP_NUM_THREADS=1 $(BIN)/python -m pipeline.phantom.lung_training build/first.safetensors
	OMP_NUM_THREADS=1 $(BIN)/python -m pipeline.phantom.lung_training build/second.safetensors \
		--steps 3500 --seed 2 --rate 0.0015 --start build/first.safetensors
	OMP_NUM_THREADS=1 $(BIN)/python -m pipeline.phantom.lung_training build/third.safetensors \
		--steps 7000 --seed 3 --rate 0.0015 --start build/second.safetensors
	OMP_NUM_THREADS=1 $(BIN)/python -m pipeline.phantom.lung_training build/fourth.safetensors \
		--steps 2800 --seed 4 --rate 0.0015 --solid 0.4 --start build/third.safetensors
	OMP_NUM_THREADS=1 $(BIN)/python -m pipeline.phantom.lung_training build/fifth.safetensors \
		--steps 2090 --seed 5 --rate 0.0015 --solid 0.4 --turned 0.5 --muscles 0.7 --tubes 0.15 --start build/fourth.safetensors
	OMP_NUM_THREADS=1 $(BIN)/python -m pipeline.phantom.lung_training build/sixth.safetensors \
		--steps 2300 --seed 6 --rate 0.0015 --difficult 0.1 --solid 0.5 --turned 0.5 --muscles 0.7 --tubes 0.15 --aorta 0.3 \
		--start build/fifth.safetensors
	OMP_NUM_THREADS=1 $(BIN)/python -m pipeline.phantom.lung_training build/seventh.safetensors \
		--steps 1680 --seed 7 --rate 0.0015 --difficult 0.1 --solid 0.5 --turned 0.5 --muscles 0.7 --tubes 0.15 \
		--aorta 0.15 --arch 0.5 --start build/sixth.safetensors
	OMP_NUM_THREADS=1 $(BIN)/python -m pipeline.phantom.lung_training build/eighth.safetensors \
		--steps 1100 --seed 8 --rate 0.0015 --difficult 0.1 --solid 0.5 --turned 0.5 --muscles 0.7 --tubes 0.15 \
		--aorta 0.15 --arch 0.3 --fluid 0.4 --start build/seventh.safetensors
	OMP_NUM_THREADS=1 $(BIN)/python -m pipeline.phantom.lung_training build/ninth.safetensors \
		--steps 2200 --seed 9 --rate 0.0015 --difficult 0.15 --solid 0.5 --turned 0.5 --muscles 0.7 --tubes 0.15 \
		--aorta 0.15 --arch 0.2 --fluid 0.3 --full-side 0.12 --start build/eighth.safetensors
	OMP_NUM_THREADS=1 $(BIN)/python -m pipeline.phantom.lung_training build/lung_segmenter.safetensors \
		--steps 3000 --seed 11 --rate 0.0015 --difficult 0.15 --solid 0.5 --turned 0.5 --muscles 0.7 --tubes 0.15 \
		--aorta 0.15 --arch 0.2 --fluid 0.25 --full-side 0.15 --solid-lung 0.15 --start build/ninth.safetensors
	$(BIN)/python benchmarks/lungs.py

canary: .venv/installed peers  ## does anything of a patient leave? whole runs, every byte looked at; writes docs/canary.md
	$(BIN)/python -m tests.canary

attack: .venv/installed  ## what a hostile server learns from the real gateway: every attack, as a table; 1 if any patient
	$(BIN)/python -W ignore -m tests.attacks

further: .venv/installed peers  ## what `make test` shows with one network, size or run, with others: less than six minutes
	$(BIN)/pytest -m "further and not chaos" -n 2 --dist loadfile

chaos: .venv/installed peers  ## processes killed, networks cut, disks full: the faults of docs/reliability.md, an hour or more
	$(BIN)/pytest -m chaos --ignore=tests/chaos/test_soak.py

soak: .venv/installed peers  ## two hundred rounds with faults at random; FEDTHORAX_SOAK_ROUNDS says how many
	$(BIN)/pytest -m chaos tests/chaos/test_soak.py

fuzz: .venv/installed  ## every parser of foreign files, and the gateway, against hostile input, some minutes each
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[bench]'
	$(BIN)/python -m tests.fuzz

flower-drill: .venv/installed  ## the tests that meet Flower's runtime, with another version of it: VERSION=1.43.0
	$(BIN)/python -m tests.flower_drill $(VERSION)

clean:  ## everything that the commands above wrote, the environment included
	rm -rf .venv demo build *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
	rm -rf viewer/node_modules pipeline/clinic/page/static/niivue.*

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[all]'
	touch $@
