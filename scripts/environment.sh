# Sourced by the other scripts: ensure_environment FILE... makes .venv with these requirement files, once.

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

ensure_environment() {
    local python file
    if ! .venv/bin/python -m pip --version > /dev/null 2>&1; then
        python=$(find_python) || return 2
        echo "making .venv with $("$python" --version)"
        "$python" -m venv --clear .venv
    fi
    for file in "$@"; do
        if ! cmp -s "$file" ".venv/installed-$file"; then
            echo "installing $file (once; PyTorch may take some minutes)"
            .venv/bin/python -m pip install --quiet --disable-pip-version-check -r "$file"
            cp "$file" ".venv/installed-$file"
        fi
    done
}
