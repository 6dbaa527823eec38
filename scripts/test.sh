#!/usr/bin/env bash
# The same as python scripts/test.py.
source "$(dirname "${BASH_SOURCE[0]}")/python.sh"
