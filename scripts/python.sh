# Sourced by the other shell scripts, for those who have bash: runs the Python script of the same name with the Python of
# the active environment, else of .venv, else any that is new enough. conda's base is active without being asked for.
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
active=
if [ -n "${VIRTUAL_ENV:-}" ] || { [ -n "${CONDA_PREFIX:-}" ] && [ "${CONDA_DEFAULT_ENV:-}" != base ]; }; then active=python; fi
for python in "${PYTHON:-}" "$active" "$here/../.venv/bin/python" python3 python3.14 python3.13 python3.12 python3.11 python
do
    if [ -n "$python" ] && "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2> /dev/null; then
        exec "$python" "$here/$(basename "$0" .sh).py" "$@"
    fi
done
echo "error: no Python 3.11 or newer was found; install one, or name it: PYTHON=/path/to/python3" >&2
exit 2
