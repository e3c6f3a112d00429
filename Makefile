PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed

.PHONY: install quickstart demo space test lint docs

install: $(INSTALLED)

$(INSTALLED): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable '.[all,test]'
	touch $(INSTALLED)

quickstart: install
	$(BIN)/mms run --pairs embedded --encoder embedded --dictionary topk --out runs/quickstart
	@echo "Open runs/quickstart/report.html in a browser."

demo: install
	$(BIN)/python -m demos

# A folder to push to the Hugging Face hub as a Space.
space:
	rm -rf runs/space && mkdir -p runs/space
	cp -r features mms_apps demos licenses pyproject.toml LICENSE NOTICE runs/space
	cp huggingface_space/README.md huggingface_space/Dockerfile runs/space
	find runs/space -name __pycache__ -prune -exec rm -r {} +

test: install
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: .venv-docs/installed
	.venv-docs/bin/mkdocs build --strict --quiet
	@echo "Open build/site/index.html in a browser."

.venv-docs/installed: docs/requirements.txt
	test -x .venv-docs/bin/python || $(PYTHON) -m venv .venv-docs
	.venv-docs/bin/python -m pip install --quiet --requirement docs/requirements.txt
	touch .venv-docs/installed

# How the shipped encoders and FeatureSpaces were made; about an hour on two cores.
ENCODERS := features/embedded/encoders
SPACES := features/embedded/spaces

.PHONY: embedded-encoders embedded-spaces

embedded-encoders: install
	$(BIN)/mms train-encoder --pairs embedded:train --steps 3000 --out $(ENCODERS)/embedded
	$(BIN)/mms train-encoder --pairs embedded:train --ssl --steps 3000 --out $(ENCODERS)/embedded-ssl

embedded-spaces: install
	for encoder in embedded embedded-ssl; do \
	    $(BIN)/mms extract --pairs embedded:train --encoder $$encoder --out runs/spaces/$$encoder/train && \
	    $(BIN)/mms fit --store runs/spaces/$$encoder/train --out runs/spaces/$$encoder/dictionary && \
	    $(BIN)/mms extract --pairs embedded --encoder $$encoder --out runs/spaces/$$encoder/store || exit 1; \
	done
	$(BIN)/mms score --pairs embedded --store runs/spaces/embedded/store --judge-store runs/spaces/embedded-ssl/store --dictionary runs/spaces/embedded/dictionary --out $(SPACES)/embedded
	$(BIN)/mms score --pairs embedded --store runs/spaces/embedded-ssl/store --judge-store runs/spaces/embedded/store --dictionary runs/spaces/embedded-ssl/dictionary --out $(SPACES)/embedded-ssl

# The shipped FeatureSpaces scored again, with the dictionaries that they hold; minutes.
.PHONY: score-spaces

score-spaces: install
	$(BIN)/python -m features.embedded.score_spaces --work runs/spaces/scored

# The photographs: PHOTOS names the folder of the three imagefolders, PACKAGES that of the two
# packages with the towers (features/embedded/build_towers.py says how to get them).
.PHONY: photos-pairs photos-encoder photos-space

photos-pairs: install
	$(BIN)/python -m features.embedded.build_photos --source $(PHOTOS)

photos-encoder: install
	$(BIN)/python -m features.embedded.build_towers --packages $(PACKAGES) --out runs/towers
	$(BIN)/mms train-encoder --pairs photos:train --image-tower runs/towers/image --text-tower runs/towers/text --out $(ENCODERS)/photos

photos-space: install
	$(BIN)/python -m features.embedded.build_photos_space --work runs/spaces/photos
