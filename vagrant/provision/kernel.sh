#!/usr/bin/env bash
# Makes the next boot take another kernel. In: KERNEL, which is "backports" (Debian's newest for its stable release) or
# the name of a package. The reboot itself is Vagrant's.
# shellcheck source=vagrant/provision/common.sh
. "$(dirname "$0")/common.sh"

package=$KERNEL
if [[ $KERNEL == backports ]]; then
    # shellcheck source=/dev/null
    . /etc/os-release
    [[ $ID == debian ]] || die "backports are Debian's" "KERNEL=linux-image-generic-hwe-24.04 on Ubuntu"
    printf 'deb http://deb.debian.org/debian %s-backports main\n' "$VERSION_CODENAME" \
        >/etc/apt/sources.list.d/k8snet-backports.list
    apt-get -qq -o Acquire::Retries=3 update
    apt-get -qq -y -o Dpkg::Use-Pty=0 install -t "$VERSION_CODENAME-backports" linux-image-amd64
    package=linux-image-amd64
else
    install "$package"
fi

# A meta package has no kernel itself: it depends on one that has.
files() { dpkg-query -L "$1" 2>/dev/null | sed -n 's,^/boot/vmlinuz-,,p'; }
release=$(files "$package")
if [[ -z $release ]]; then
    for part in $(dpkg-query -W -f='${Depends}' "$package" | tr ',' '\n' | sed -n 's/^ *\(linux-image-[^ (]*\).*/\1/p'); do
        release=$(files "$part")
        [[ -z $release ]] || break
    done
fi
[[ -n $release ]] || die "$package brings no kernel" "KERNEL=backports, or a package linux-image-…"

# GRUB takes the highest version by itself; any other has to be named by its entry in the submenu.
root=$(grub-probe --target=fs_uuid /)
mkdir -p /etc/default/grub.d
printf 'GRUB_DEFAULT="gnulinux-advanced-%s>gnulinux-%s-advanced-%s"\n' "$root" "$release" "$root" \
    >/etc/default/grub.d/k8snet.cfg
update-grub
say "the next boot takes $release; this one is $(uname -r)"
