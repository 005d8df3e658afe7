#!/usr/bin/env bash
# Print the first interpreter that runs, of the versions given (`find-python.sh 3.11 3.12`), or say what to install.
# An executable on PATH is not enough: pyenv puts one there for every version, which then refuses to start.
set -euo pipefail
for version in "$@"; do
    for candidate in "python$version" "${PYENV_ROOT:-$HOME/.pyenv}/versions/$version".*/bin/python python3; do
        if found=$("$candidate" -c 'import sys, venv; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) &&
            [ "$found" = "$version" ]; then
            command -v "$candidate"
            exit 0
        fi
    done
done
echo "no working Python of version $* found; install one (with its venv module) and try again" >&2
exit 1
