#!/usr/bin/env bash
# The same as python scripts/train_cascade.py.
source "$(dirname "${BASH_SOURCE[0]}")/python.sh"
