#!/usr/bin/env bash
# Makes a checkout ready to run: Debian packages that are missing, .venv, pinned Python packages.
#
#   deploy/bootstrap.sh demo    what `gpuaas demo` needs
#   deploy/bootstrap.sh test    that, and what the tests need
#
# Running it again costs a fraction of a second: it asks for programs, and the virtual environment
# carries the hash of what it was made from. Services that come with the packages are neither started
# nor enabled: the demo and the tests run private ones of their own.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin"

say() { printf 'bootstrap: %s\n' "$*" >&2; }
has() { command -v "$1" >/dev/null 2>&1; }

# --- Debian packages -----------------------------------------------------------------------------

missing=()
need() { # PROGRAM PACKAGE
    has "$1" || missing+=("$2")
}

find_missing() {
    find_python >/dev/null || missing+=(python3-venv)
    [ -e /etc/ssl/certs/ca-certificates.crt ] || missing+=(ca-certificates)
    need git git
    need ssh-keygen openssh-client # Commits are signed with it.
    need docker-registry docker-registry
    [ -x /bin/busybox ] || missing+=(busybox-static)
    if [ "$1" = test ]; then
        need dockerd docker.io
        need sshd openssh-server
        need ssh openssh-client
        need gpg gnupg
        need gpg-agent gpg-agent
        need curl curl
        need debootstrap debootstrap
        need skopeo skopeo
    elif [ -z "${DOCKER_HOST:-}" ] && [ ! -S /var/run/docker.sock ]; then
        need dockerd docker.io # Else the Docker that is there already will do.
    fi
}

install_missing() {
    [ ${#missing[@]} -gt 0 ] || return 0
    if ! has apt-get || [ "$(id -u)" != 0 ]; then
        say "missing: ${missing[*]}. Not installed, because this is not root on Debian;" \
            "going on with what is there."
        return 0
    fi
    say "installing ${missing[*]}"
    forbid_service_starts
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq >&2
    apt-get install -y -qq --no-install-recommends "${missing[@]}" >&2
    disable_services
}

# Debian starts a service as soon as it is installed: an SSH server or a registry nobody asked for.
policy=/usr/sbin/policy-rc.d
forbid_service_starts() {
    [ ! -e "$policy" ] || return 0
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
    trap 'rm -f "$policy"' EXIT
}

disable_services() {
    local package unit
    for package in "${missing[@]}"; do
        for unit in $(units_of "$package"); do
            DPKG_MAINTSCRIPT_PACKAGE="$package" deb-systemd-helper disable "$unit" >/dev/null ||
                say "could not disable $unit"
            [ ! -e "/etc/init.d/${unit%.*}" ] || update-rc.d "${unit%.*}" disable >/dev/null
        done
    done
}

units_of() { # PACKAGE
    case "$1" in
    docker.io) echo docker.service docker.socket containerd.service ;;
    docker-registry) echo docker-registry.service ;;
    openssh-server) echo ssh.service ;;
    esac
}

# --- Python --------------------------------------------------------------------------------------

find_python() { # Prints a Python of 3.11 or later that can make virtual environments.
    local candidate
    for candidate in ${PYTHON:+"$PYTHON"} python3 python3.13 python3.12 python3.11 /usr/bin/python3; do
        if "$candidate" -c \
            'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            "$candidate" -c 'import sys; print(sys.executable)'
            return 0
        fi
    done
    return 1
}

# Settings that send packages elsewhere, or that contradict a lock file. Where packages come from
# (an index, a folder of wheels, a proxy) stays as it is set: the hashes in the lock decide.
pip() {
    env -u PIP_USER -u PIP_TARGET -u PIP_PREFIX -u PIP_ROOT -u PIP_CONSTRAINT -u PIP_REQUIREMENT \
        -u PIP_EDITABLE -u PIP_REQUIRE_HASHES -u PIP_REQUIRE_VIRTUALENV -u PYTHONPATH \
        -u PYTHONHOME PIP_DISABLE_PIP_VERSION_CHECK=1 .venv/bin/python -m pip --quiet "$@"
}

install_python_packages() { # LOCK
    local stamp=".venv/.made-from-$1" python wanted
    if ! python="$(find_python)"; then
        say "no Python 3.11 or later with its venv module (on Debian: apt-get install python3-venv)"
        exit 1
    fi
    wanted="$(cat "$1" pyproject.toml deploy/bootstrap.sh <(printf '%s\n' "$PWD") | sha256sum)"
    if [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ] && .venv/bin/python -c '' 2>/dev/null; then
        return 0
    fi
    if [ "$(cat .venv/.made-at 2>/dev/null)" != "$PWD" ] || ! .venv/bin/python -c '' 2>/dev/null; then
        say "making .venv with $python"
        env -u PYTHONPATH -u PYTHONHOME "$python" -m venv --clear .venv
        printf '%s\n' "$PWD" >.venv/.made-at
    fi
    say "installing the packages of $1"
    pip install --require-hashes --requirement "$1"
    pip install --no-build-isolation --no-deps --no-index --editable .
    printf '%s\n' "$wanted" >"$stamp"
}

# --- what was asked for --------------------------------------------------------------------------

case "${1:-}" in
demo) lock=requirements.lock ;;
test) lock=requirements-dev.lock ;;
*)
    say "usage: deploy/bootstrap.sh demo|test"
    exit 2
    ;;
esac
find_missing "$1"
install_missing
install_python_packages "$lock"
