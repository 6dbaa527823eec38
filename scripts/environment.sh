# Sourced by the other scripts, after signals.sh: ensure_environment FILE... sees that .venv meets these requirement
# files. It makes .venv where there is none, and never clears one that a person has made.

find_python() {
    local candidate
    for candidate in ${PYTHON:-} python3 python3.14 python3.13 python3.12 python3.11 python; do
        if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    echo "error: no Python 3.11 or newer with venv was found; install one, or name it: PYTHON=/path/to/python3" >&2
    return 2
}

# .venv/incomplete is there until .venv is whole: so one whose making was interrupted is known as ours, and made anew.
make_environment() {
    local python
    python=$(find_python) || return
    echo "making .venv with $("$python" --version)"
    mkdir -p .venv
    touch .venv/incomplete
    find .venv -mindepth 1 -maxdepth 1 ! -name incomplete -exec rm -rf {} +
    attended "$python" -m venv .venv || return
    rm .venv/incomplete
}

# unmet FILE...: the requirements that .venv does not meet, on one line. It works without pip.
unmet() {
    .venv/bin/python - "$@" <<'PYTHON'
import re
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def numbers(text):
    return [int(number) for number in re.match(r"[\d.]*", text)[0].split(".") if number]


def is_met(requirement):
    name, limits = re.match(r"([\w.-]+)(.*)", requirement).groups()
    try:
        found = numbers(version(name))
    except PackageNotFoundError:
        return False
    low, high = (re.search(sign + r"([\d.]+)", limits) for sign in (">=", "<"))
    return (not low or found >= numbers(low[1])) and (not high or found < numbers(high[1]))


lines = [line.partition("#")[0].strip() for path in sys.argv[1:] for line in Path(path).read_text().splitlines()]
print(*(line for line in lines if line and not is_met(line)))
PYTHON
}

ensure_environment() {
    local file lacking
    if { [ ! -e .venv ] && [ ! -L .venv ]; } || [ -e .venv/incomplete ]; then make_environment || return; fi
    if ! .venv/bin/python -c '' > /dev/null 2>&1; then
        echo "error: .venv/bin/python does not run; repair .venv, or remove it and run this again" >&2
        return 2
    fi
    if .venv/bin/python -m pip --version > /dev/null 2>&1; then
        for file in "$@"; do
            if cmp -s "$file" ".venv/installed-$file"; then continue; fi
            echo "installing $file (once; PyTorch may take some minutes)"
            attended .venv/bin/python -m pip install --quiet --disable-pip-version-check -r "$file" || return
            cp "$file" ".venv/installed-$file.new"
            mv ".venv/installed-$file.new" ".venv/installed-$file"
        done
        return
    fi
    lacking=$(unmet "$@") || return
    if [ -z "$lacking" ]; then return; fi
    if ! command -v uv > /dev/null; then
        echo "error: .venv has no pip and lacks $lacking; install them there, or remove .venv and run this again" >&2
        return 2
    fi
    for file in "$@"; do
        echo "installing $file with uv"
        attended uv pip install --quiet --python .venv/bin/python -r "$file" || return
    done
}
