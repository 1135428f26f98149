# SPDX-License-Identifier: MIT
# Sourced by scripts/provision, demo, test and bench from the checkout's top: what this machine still needs.
# Debian packages by apt (as root or by sudo), everything of Python's into .venv/ by hash. Says what it does.

say() {
    printf '%s\n' "$*" >&2
}

as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    elif command -v sudo >/dev/null 2>&1; then
        sudo "$@"
    else
        say "error: $1 needs root, and there is no sudo"
        say "hint: run as root: $*"
        exit 3
    fi
}

# prepare_debian PACKAGE...: install those that are missing.
prepare_debian() {
    missing=
    for package in "$@"; do
        status=$(dpkg-query -W -f '${Status}' "$package" 2>/dev/null || true)
        [ "$status" = "install ok installed" ] || missing="$missing $package"
    done
    [ -n "$missing" ] || return 0
    if ! command -v apt-get >/dev/null 2>&1; then
        say "error: missing packages:$missing"
        say "hint: this machine has no apt-get; install their like and run again"
        exit 3
    fi
    say "installing Debian packages:$missing"
    as_root apt-get update -qq
    # shellcheck disable=SC2086 -- one word a package
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null
}

find_python() {
    for candidate in python3 python3.13 python3.12 python3.11; do
        path=$(command -v "$candidate" || true)
        if [ -n "$path" ] && "$path" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null &&
            "$path" -c 'import ensurepip, venv' 2>/dev/null; then
            printf '%s' "$path"
            return 0
        fi
    done
    return 1
}

# prepare_venv: make .venv/ with everything of scripts/requirements.lock and this checkout itself.
prepare_venv() {
    want=$(cat scripts/requirements.lock pyproject.toml | sha256sum | cut -d' ' -f1)
    have=$(cat .venv/.veracruz-prepared 2>/dev/null || true)
    [ "$want" != "$have" ] || return 0
    if ! .venv/bin/python -c 'import pip' 2>/dev/null; then  # none, or one whose making was interrupted
        python=$(find_python) || {
            say "error: no Python 3.11 or later with venv"
            say "hint: apt-get install python3 python3-venv"
            exit 3
        }
        say "making .venv with $python"
        "$python" -m venv --clear .venv
    fi
    say "installing Python packages into .venv (hashes checked)"
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r scripts/requirements.lock
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
    printf '%s' "$want" >.venv/.veracruz-prepared
}

# prepare_system [PACKAGE...]: what is installed for all users of the machine.
prepare_system() {
    prepare_debian python3 python3-venv qemu-system-x86 "$@"
}

# prepare [PACKAGE...]: all that demo and test need, and further packages that the caller names.
prepare() {
    prepare_system "$@"
    prepare_venv
}
