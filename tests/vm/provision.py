"""Provisions a virtual machine as `vagrant up` with LAB=netns would, for real, and plays all scenarios in it.

In: nothing but this machine's mirror of Debian and its pip. Out: what the machine printed, and 0 if all went well. The
machine is emulated and has no network: its root is a fresh Debian (debootstrap), the packages are an apt repository in
a directory, Python's are wheels in another. So what is tested is that the provisioning needs nothing else.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

from kernels import fetch, give_up, image, mirrors, private_apt, release, run
from run import PROJECT, end, vng

BUILD = PROJECT / "build" / "vagrant"
SUITE = "bookworm"  # what the box of the Vagrantfile's default is
PYTHON = "3.11"  # and its Python
KERNEL = "6.1"  # and its kernel
# Beside the essential packages: what a box has because Vagrant could not enter it otherwise.
BOX = "ca-certificates,iproute2,kmod,python3"
LIMIT = 1800.0  # seconds


def fresh_root(tree: Path) -> None:
    """A Debian that nothing was installed on; made once."""
    if tree.is_dir():
        return
    if shutil.which("debootstrap") is None:
        give_up("debootstrap is not installed", "make setup-vagrant")
    draft = tree.with_name("draft")
    shutil.rmtree(draft, ignore_errors=True)
    draft.parent.mkdir(parents=True, exist_ok=True)
    proxy = run("apt-config", "shell", "proxy", "Acquire::http::Proxy").strip().removeprefix("proxy=").strip("'")
    environment = os.environ | ({"http_proxy": proxy} if proxy else {})
    command = ["debootstrap", "--variant=minbase", f"--include={BOX}", SUITE, str(draft), mirrors()[0]]
    done = subprocess.run(command, env=environment, check=False, capture_output=True, text=True)
    if done.returncode:
        give_up(f"debootstrap failed: {(done.stdout + done.stderr).strip()[-500:]}", "see the message above")
    draft.rename(tree)


def repository(tree: Path) -> None:
    """The packages that the provisioning installs, as an apt repository at /repo, the only one the machine knows."""
    where = tree / "repo"
    where.mkdir(exist_ok=True)
    flags = private_apt(BUILD / "apt", {SUITE, f"{SUITE}-security"})
    # What is missing there, not here.
    flags += ["-o", f"Dir::State::status={tree}/var/lib/dpkg/status", "-o", f"Dir::Cache::archives={where}"]
    (where / "partial").mkdir(exist_ok=True)
    listed = run("bash", "-c", '. "$1" && echo "${PACKAGES[@]}"', "packages", str(PROJECT / "vagrant/versions.env"))
    run("apt-get", "-q", "-y", *flags, "install", "--download-only", "--no-install-recommends", *listed.split())
    entries = []
    for deb in sorted(where.glob("*.deb")):
        fields = run("dpkg-deb", "--field", str(deb)).strip()
        digest = hashlib.sha256(deb.read_bytes()).hexdigest()
        entries.append(f"{fields}\nFilename: ./{deb.name}\nSize: {deb.stat().st_size}\nSHA256: {digest}\n")
    (where / "Packages").write_text("\n".join(entries))
    (tree / "etc/apt/sources.list").write_text("deb [trusted=yes] file:/repo ./\n")


def wheels(tree: Path) -> None:
    """What pip needs to install the project, at /wheels, the only place the machine's pip looks at."""
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())
    wanted = [*project["project"]["dependencies"], *project["build-system"]["requires"]]
    where = tree / "wheels"
    run(sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--only-binary", ":all:",
        "--python-version", PYTHON, "--dest", str(where), *wanted)  # fmt: skip
    (tree / "etc/pip.conf").write_text("[global]\nno-index = true\nfind-links = /wheels\n")


def checkout(tree: Path) -> None:
    """This tree at /srv/k8snet, without what the Vagrantfile leaves out."""
    where = tree / "srv/k8snet"
    shutil.rmtree(where, ignore_errors=True)
    [excluded] = re.findall(r"rsync__exclude: %w\[(.*?)\]", (PROJECT / "vagrant/Vagrantfile").read_text())
    left_out = {PROJECT / path for path in excluded.split()}
    caches = shutil.ignore_patterns("__pycache__", ".*_cache", ".hypothesis")

    def ignored(directory: str, names: list[str]) -> set[str]:
        return {name for name in names if Path(directory) / name in left_out} | caches(directory, names)

    shutil.copytree(PROJECT, where, ignore=ignored, symlinks=True)


def boot(tree: Path, kernel: Path, out: Path) -> float:
    """Run the machine to its end; how many seconds that took."""
    home = BUILD / "home"
    for directory in (out, home):
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
    guest = ["/bin/sh", str(PROJECT / "tests/vm/provision.sh"), "k8snet_host", "k8snet_fresh", "k8snet_out"]
    guest.append(str(kernel / "lib/modules"))
    shared = [
        "-virtfs local,path=/,mount_tag=k8snet_host,security_model=none,readonly=on,multidevs=remap",
        f"-virtfs local,path={tree},mount_tag=k8snet_fresh,security_model=none,readonly=on",
        f"-virtfs local,path={out},mount_tag=k8snet_out,security_model=none",
    ]
    command = [vng(), "--run", str(image(kernel)), "--disable-kvm", "--force-9p", "--disable-microvm"]
    command += ["--append", "mitigations=off", "--user", "root", "--memory", "5G", "--cpus", "1", "--verbose"]
    command += ["--exec", shlex.join(guest), f"--qemu-opts={' '.join(shared)}"]
    # As in run.py: virtme-ng writes under HOME and finds its halves by PATH.
    environment = {key: value for key, value in os.environ.items() if not key.startswith("XDG_")}
    path = f"{Path(command[0]).parent}:{os.environ['PATH']}:/usr/sbin:/sbin"
    environment |= {"HOME": str(home), "TMPDIR": str(home), "PATH": path}
    began = time.monotonic()
    with (BUILD / "console").open("wb") as console:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=console,
            stderr=console,
            env=environment,
            start_new_session=True,
        )
        try:
            process.wait(LIMIT)
        except subprocess.TimeoutExpired:
            pass  # it has left no status, and that is told
        finally:
            end(process)
    return time.monotonic() - began


def main() -> int:
    """0 if the provisioning and all scenarios went well."""
    if os.geteuid() != 0:
        give_up("debootstrap makes a root file system, which only root may", "sudo make vagrant-test")
    began = time.monotonic()
    tree, out = BUILD / "root", BUILD / "out"
    fresh_root(tree)
    repository(tree)
    wheels(tree)
    checkout(tree)
    kernel = fetch([KERNEL], PROJECT / "build" / "vm")[KERNEL]
    print(f"vagrant: {time.monotonic() - began:.0f} s to prepare; booting {release(kernel)}: {out}/output", flush=True)
    seconds = boot(tree, kernel, out)
    output, status = out / "output", out / "status"
    text = output.read_text(errors="replace") if output.exists() else (BUILD / "console").read_text(errors="replace")
    good = status.exists() and status.read_text().strip() == "0"
    print("\n".join(text.splitlines()[-200:]))
    print(f"vagrant LAB=netns ({release(kernel)}): {'ok' if good else 'FAILED'}; {seconds:.0f} s")
    return 0 if good else 1


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
