# Shared by the scripts of this folder; sourced, never run.
# shellcheck shell=bash

# shellcheck disable=SC2034  # read by the scripts that source this file
cache="${XDG_CACHE_HOME:-$HOME/.cache}/pytest-freethread"
# shellcheck disable=SC2034  # read by the scripts that source this file
keyring=/usr/share/keyrings/debian-archive-keyring.gpg

# Standard output belongs to each script's answer.
say() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }

die() {
    say "$*"
    exit 1
}

as_root() {
    if [[ $(id -u) == 0 ]]; then "$@"; else sudo -n "$@"; fi
}

# Run a long command in silence; its last lines are shown only if it fails.
quietly() {
    local log
    log=$(mktemp)
    if ! "$@" >"$log" 2>&1 </dev/null; then
        tail -n 40 "$log" >&2
        rm -f "$log"
        say "failed: $*"
        return 1
    fi
    rm -f "$log"
}

# install_missing PACKAGE...: by the machine's own apt configuration.
install_missing() {
    local package missing=()
    for package; do
        [[ $(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null) == installed ]] ||
            missing+=("$package")
    done
    ((${#missing[@]})) || return 0
    say "installing ${missing[*]}"
    quietly as_root apt-get update
    quietly as_root env DEBIAN_FRONTEND=noninteractive \
        apt-get install --yes --no-install-recommends "${missing[@]}"
}

# The URI of the Debian mirror that this machine is configured for; fails where there is none. apt
# itself is asked, so that both formats of its sources are understood.
debian_mirror() {
    grep -qx 'ID=debian' /etc/os-release 2>/dev/null || return 1
    # shellcheck disable=SC2016  # apt's own variables
    local list query=(apt-get indextargets --format '$(RELEASE) $(REPO_URI)' 'Created-By: Packages')
    list=$("${query[@]}")
    if [[ -z $list ]]; then # apt lists only what it has updated at least once
        quietly as_root apt-get update
        list=$("${query[@]}")
    fi
    # A release without a suffix is the archive proper, not its folder of updates.
    awk '$1 ~ /^[a-z]+$/ { print $2; found = 1; exit } END { exit !found }' <<<"$list"
}
