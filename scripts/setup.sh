#!/bin/sh
# Create .venv and install the package into it (editable): `sh scripts/setup.sh runtime|dev`. Needs Python >= 3.11 with
# venv, nothing else. When .venv already holds what is asked for, nothing is installed and the network is not touched.
set -eu
cd "$(dirname "$0")/.."

level=${1:?usage: setup.sh runtime|dev}
python=.venv/bin/python
# Present while an installation is under way: whatever was interrupted is thrown away and made anew.
unfinished=.venv/.unfinished
# What the stamps promise: these dependencies, in this directory (scripts in .venv/bin carry its path).
wanted="$(cksum < pyproject.toml) $(pwd)"

holds() {
    [ -f ".venv/.installed-$1" ] && [ "$(cat ".venv/.installed-$1")" = "$wanted" ]
}

find_python() {
    found=""
    for candidate in python3 python3.11 python3.12 python3.13 python3.14 python; do
        command -v "$candidate" > /dev/null 2>&1 || continue
        version=$("$candidate" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2> /dev/null) || continue
        if ! "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
            found="$found $candidate is $version;"
        elif ! "$candidate" -c 'import ensurepip, venv' 2> /dev/null; then
            found="$found $candidate is $version but has no venv (Debian, Ubuntu: the package python$version-venv);"
        else
            return 0
        fi
    done
    echo "setup: needs Python 3.11 or newer with venv; found:${found:- no Python at all}" >&2
    exit 1
}

if [ ! -e "$unfinished" ] && "$python" -c '' 2> /dev/null; then
    if holds dev || { [ "$level" = runtime ] && holds runtime; }; then
        exit 0
    fi
fi
if [ -e "$unfinished" ] || ! "$python" -m pip --version > /dev/null 2>&1; then
    find_python
    echo "setup: creating .venv with $candidate ($version)"
    rm -rf .venv
    mkdir .venv
    : > "$unfinished"
    "$candidate" -m venv .venv
else
    : > "$unfinished"
fi

pip() {
    "$python" -m pip --quiet --disable-pip-version-check "$@" || {
        echo "setup: pip could not install (see above); is there a network? Run the same command again." >&2
        exit 1
    }
}

if [ "$level" = dev ]; then
    echo "setup: installing the package, what it needs and the tools of the checks into .venv"
    pip install --upgrade "pip>=25.1" # the first that knows --group
    pip install --editable . --group dev
else
    echo "setup: installing the package and what it needs into .venv"
    pip install --editable .
fi
rm -f .venv/.installed-*
echo "$wanted" > ".venv/.installed-$level"
rm -f "$unfinished"
