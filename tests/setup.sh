#!/usr/bin/env bash
# Makes a fresh Debian machine ready for `make demo` and `make test`; `make setup` and its like call it.
# In: the word "base" (compile and trace), "tests" (what reads our exports and scripts), "vm" (boot other kernels) or
# "vagrant" (make a root file system for one). Out: Debian packages, and for "base" the virtual environment .venv with the
# project in it. Done once: a stamp holds the hash of what it depends on.
set -euo pipefail
cd "$(dirname "$0")/.."
# Otherwise an interrupted command would look like one that failed, and be tried again.
trap 'exit 130' INT TERM

say() { printf 'setup: %s\n' "$*" >&2; }
die() {
    printf 'setup: %s\n  %s\n' "$1" "$2" >&2
    exit 2
}

group=${1:-base}
optional=()
case $group in
base)
    packages=(ca-certificates clang conntrack iproute2 ipset iptables kmod libbpf-dev llvm make nftables openssl tcpdump)
    # The lab's DNS server: the scenarios about DNS need it.
    optional=(dnsmasq-base)
    commands=(clang conntrack ip ipset iptables-legacy iptables-nft llvm-strip nft openssl tcpdump)
    ;;
tests)
    packages=(shellcheck)
    # What reads our exports, and the Vagrantfile: 105 MB to fetch, 430 MB on disk, half a minute (Debian 12). Not every
    # release of Debian has all of them.
    optional=(chromium-headless-shell tshark vagrant)
    commands=(shellcheck)
    ;;
vm)
    # busybox and file: virtme-ng builds its initramfs with the one and reads the kernel's version with the other.
    packages=(apt busybox-static file kmod qemu-system-x86 xz-utils)
    commands=(busybox depmod file qemu-system-x86_64)
    ;;
vagrant)
    packages=(apt debootstrap)
    commands=(debootstrap)
    ;;
*) die "no such group of packages: $group" "tests/setup.sh base|tests|vm|vagrant" ;;
esac
export PATH=$PATH:/usr/sbin:/sbin

# A virtual environment knows its own path, so a moved or copied tree starts again.
stamp=build/setup/$group
inputs=$({ pwd && cat tests/setup.sh pyproject.toml; } | sha256sum | cut -d' ' -f1)

lacking() {
    local command
    for command in "${commands[@]}"; do
        command -v "$command" >/dev/null || return 0
    done
    return 1
}
if [[ -r $stamp && $(<"$stamp") == "$inputs" ]] && ! lacking && [[ $group != base || -x .venv/bin/python ]]; then
    exit 0
fi

# A mirror or an index that hiccups is asked again, with a longer pause each time.
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
    local missing=() package
    for package in "$@"; do
        [[ $(dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null) == installed ]] || missing+=("$package")
    done
    ((${#missing[@]})) || return 0
    [[ $EUID == 0 ]] || die "${missing[*]}: not installed, and installing needs root" "sudo make setup"
    say "installing ${missing[*]}"
    export DEBIAN_FRONTEND=noninteractive
    retry apt-get -q -o Acquire::Retries=3 update >build/setup/apt.log 2>&1 ||
        die "apt-get update failed: $(grep -m1 '^[EW]:' build/setup/apt.log)" "apt-get update"
    retry apt-get -q -y -o Acquire::Retries=3 -o Dpkg::Use-Pty=0 install --no-install-recommends "${missing[@]}" \
        >>build/setup/apt.log 2>&1 ||
        die "apt-get install failed: $(grep -m1 '^E:' build/setup/apt.log)" "apt-get install ${missing[*]}"
}

# Prints the first Python that is new enough and can make a virtual environment with pip in it.
python() {
    local candidate
    for candidate in python3 /usr/bin/python3 python3.14 python3.13 python3.12 python3.11; do
        command -v "$candidate" >/dev/null || continue
        if "$candidate" -c 'import ctypes, ensurepip, ssl, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
    return 1
}

[[ -e /etc/debian_version ]] || die "only Debian and its relatives are set up automatically" \
    "install by hand: ${packages[*]}; then python3 -m venv .venv && .venv/bin/pip install -e '.[dev]'"
mkdir -p build/setup
install "${packages[@]}"
# A test says what it needs and is skipped without it, so that is no reason to stop.
for package in "${optional[@]}"; do
    (install "$package") || say "going on without $package: tests that need it will be skipped"
done

if [[ $group == base ]]; then
    python >/dev/null || install python3-venv
    python3=$(python) || die "no Python 3.11 or newer" "Debian 12 and later have one: apt-get install python3-venv"
    # One that was half made, or whose Python has gone, is not repaired but made anew.
    .venv/bin/python -c 'import pip' 2>/dev/null || "$python3" -m venv --clear .venv
    say "installing the project and its tools into .venv ($("$python3" --version))"
    retry .venv/bin/python -m pip install --disable-pip-version-check --editable '.[dev]' >build/setup/pip.log 2>&1 || {
        grep -v '^WARNING:' build/setup/pip.log | tail -25 >&2
        die "pip could not install the project (see above)" ".venv/bin/python -m pip install --editable '.[dev]'"
    }
fi
printf '%s\n' "$inputs" >"$stamp"
