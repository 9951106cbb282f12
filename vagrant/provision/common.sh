# For the scripts beside it, which source it: messages, packages with retries, downloads that are verified.
# shellcheck shell=bash
set -euo pipefail
vagrant=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck disable=SC2034 # for k8snet.sh
checkout=$(dirname "$vagrant")
# shellcheck source=vagrant/versions.env
. "$vagrant/versions.env"
export DEBIAN_FRONTEND=noninteractive
export PATH=$PATH:/usr/sbin:/sbin

step=$(basename "$0" .sh)
say() { printf '%s: %s\n' "$step" "$*"; }
die() {
    printf '%s: %s\n  %s\n' "$step" "$1" "$2" >&2
    exit 1
}

# A mirror that hiccups is asked again, with a longer pause each time.
retry() {
    local pause
    for pause in 2 10; do
        "$@" && return
        say "failed: $1 ${2:-}; again in $pause s"
        sleep "$pause"
    done
    "$@"
}

install() {
    say "installing $*"
    retry apt-get -qq -o Acquire::Retries=3 update
    retry apt-get -qq -y -o Acquire::Retries=3 -o Dpkg::Use-Pty=0 install --no-install-recommends "$@"
}

# download URL SHA256 FILE: the file is there only when it is what it should be.
download() {
    say "downloading $1"
    retry curl -fsSL --proto '=https' --tlsv1.2 --max-time 600 -o "$3.part" "$1"
    if ! printf '%s  %s\n' "$2" "$3.part" | sha256sum --check --status; then
        rm -f "$3.part"
        die "$1 is not what vagrant/versions.env says" "somebody has changed it, or the pin is wrong: compare with the release's own list"
    fi
    mv "$3.part" "$3"
}
