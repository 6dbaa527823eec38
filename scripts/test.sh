#!/usr/bin/env bash
# Make the environment if it is missing, then lint and run all tests. Arguments go to pytest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/signals.sh
source scripts/environment.sh
ensure_environment requirements.txt \
    requirements-data.txt requirements-demo.txt requirements-bench.txt requirements-eval.txt requirements-app.txt \
    requirements-dev.txt
.venv/bin/ruff check .
.venv/bin/ruff format --check .
exec .venv/bin/python -m pytest --numprocesses auto --maxprocesses 4 --dist worksteal "$@"
