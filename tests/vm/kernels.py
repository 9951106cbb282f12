"""Distribution kernels for the virtual machines: fetched as packages, unpacked beside the project, never installed.

In: a name of `KERNELS`. Out: a directory with boot/vmlinuz-* and indexed modules. The surprising thing: the packages
come through a private set of apt lists, because the suite that holds a kernel need not be one that this machine
follows; the mirror, its proxy and its keys are the machine's own.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")


@dataclass(frozen=True)
class Kernel:
    """Where a kernel comes from (suites of Debian, a pattern for its packages' names), and what is tested there."""

    suites: tuple[str, ...]
    package: str
    backend: str  # the lab's, where there is time for one only


# One line adds one.
KERNELS = {
    "5.10": Kernel(("bullseye", "bullseye-security"), r"linux-image-5\.10\.[\w.+~-]+", "iptables-legacy"),
    "6.1": Kernel(("bookworm", "bookworm-security"), r"linux-image-6\.1\.[\w.+~-]+", "iptables-nft"),
    "6.12": Kernel(("bookworm-security", "bookworm-backports"), r"linux-image-6\.12\.[\w.+~-]+", "iptables-legacy"),
    "newest": Kernel(("sid",), r"linux-image-\d[\w.+~-]+", "nftables"),
}
# Not the ones for clouds, which lack drivers that the virtual machine needs; not the real-time ones; not the unsigned
# ones, which are the same kernels again.
FLAVOUR = r"-(amd64|arm64)"


def give_up(problem: str, remedy: str) -> NoReturn:
    """End the program with one clear sentence and the next step."""
    sys.exit(f"vm: {problem}\n  {remedy}")


def run(*command: str, cwd: Path | None = None) -> str:
    """Standard output of a command that must succeed."""
    try:
        done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=cwd)
    except FileNotFoundError:
        give_up(f"{command[0]} is not installed", "make setup-vm")
    if done.returncode:
        give_up(f"{' '.join(command)} failed: {(done.stderr or done.stdout).strip()}", "see the message above")
    return done.stdout


def mirrors() -> tuple[str, str]:
    """This machine's own mirror of Debian's archive, and of its security archive."""
    found: dict[bool, str] = {}
    form = "$(ORIGIN)\t$(REPO_URI)\t$(RELEASE)\t$(COMPONENT)"
    for line in run("apt-get", "indextargets", "--format", form, "Created-By: Packages").splitlines():
        origin, uri, release, component = line.split("\t")
        # Without lists on the disk (a container image) apt does not know the origin; then the component has to do.
        if origin in ("Debian", "", "$(ORIGIN)") and component == "main":
            found.setdefault("security" in release or "updates" in release.split("/"), uri)
    if False not in found:
        give_up("no mirror of Debian among this machine's apt sources", "add one to /etc/apt/sources.list")
    # A machine without security updates still has the mirror, and Debian keeps both archives side by side on it.
    return found[False], found.get(True, re.sub(r"debian/?$", "debian-security/", found[False]))


def private_apt(directory: Path, suites: set[str]) -> list[str]:
    """Fetch the lists of some suites into a directory; returns the options that make apt use them and nothing else."""
    archive, security = mirrors()
    for sub in ("lists/partial", "cache/archives/partial"):
        (directory / sub).mkdir(parents=True, exist_ok=True)
    signed = f"[signed-by={KEYRING}] " if KEYRING.exists() else ""
    sources = [
        f"deb {signed}{security if suite.endswith('-security') else archive} {suite} main" for suite in sorted(suites)
    ]
    (directory / "sources.list").write_text("\n".join(sources) + "\n")
    options = {
        "Dir::Etc::SourceList": directory / "sources.list",
        "Dir::Etc::SourceParts": "/dev/null",
        "Dir::State::Lists": directory / "lists",
        "Dir::Cache": directory / "cache",
        "APT::Sandbox::User": "root",
        "Acquire::Retries": 3,
    }
    flags = [flag for key, value in options.items() for flag in ("-o", f"{key}={value}")]
    # A suite that this mirror lacks is no failure yet: what counts is whether some suite has the kernel.
    done = subprocess.run(["apt-get", "-q", *flags, "update"], check=False, capture_output=True, text=True)
    if done.returncode:
        sys.stderr.write(done.stderr)
    return flags


def newest(flags: list[str], pattern: str) -> str:
    """The package with the highest version among those whose name matches; empty if there is none."""
    names = run("apt-cache", *flags, "pkgnames", "linux-image-").split()
    best = ("", "0")
    for name in names:
        if not re.fullmatch(pattern + FLAVOUR, name) or re.search(r"-(cloud|rt)-", name):
            continue
        shown = re.search(r"^Version: (\S+)", run("apt-cache", *flags, "show", "--no-all-versions", name), re.MULTILINE)
        if shown is None:
            continue
        version = shown[1]
        if subprocess.run(["dpkg", "--compare-versions", version, "gt", best[1]], check=False).returncode == 0:
            best = (name, version)
    return best[0]


def parts(flags: list[str], package: str) -> list[str]:
    """The packages that make up a kernel: Debian's newest ships the image and the modules apart."""
    shown = run("apt-cache", *flags, "show", "--no-all-versions", package)
    depends = re.search(r"^Depends: (.*)", shown, re.MULTILINE)
    # What a kernel wants in exactly its own version is a part of it.
    return [package, *re.findall(r"(linux-[\w.+~-]+) \(= ", depends[1] if depends else "")]


def release(tree: Path) -> str:
    """The version of an unpacked kernel as `uname -r` will say it."""
    [modules] = tree.glob("lib/modules/*")
    return modules.name


def image(tree: Path) -> Path:
    """The file that is booted."""
    [found] = tree.glob("boot/vmlinuz-*")
    return found


def fetch(names: list[str], build: Path) -> dict[str, Path]:
    """Directories with the unpacked kernels; from an earlier run if they are there, else from the mirror.

    A kernel that is there is not looked for again, so that a test run on the same tree is the same run; `make clean`
    makes the next one take the newest.
    """
    for name in names:
        if name not in KERNELS:
            give_up(f"no such kernel: {name}", f"one of: {' '.join(KERNELS)}; or add a line to {__file__}")
    trees = {name: build / name / "tree" for name in names}
    absent = [name for name in names if not trees[name].is_dir()]
    if absent:
        flags = private_apt(build / "apt", {suite for name in absent for suite in KERNELS[name].suites})
        for name in absent:
            package = newest(flags, KERNELS[name].package)
            if not package:
                give_up(
                    f"no package {KERNELS[name].package} in {', '.join(KERNELS[name].suites)}", "look at the mirror"
                )
            print(f"vm: fetching {package}", flush=True)
            _unpack(flags, parts(flags, package), trees[name])
    return trees


def _unpack(flags: list[str], packages: list[str], tree: Path) -> None:
    """Download packages and unpack them at `tree`, which exists only when it is whole."""
    draft = tree.with_name("draft")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    run("apt-get", "-q", *flags, "download", *packages, cwd=draft)
    for deb in draft.glob("*.deb"):
        run("dpkg-deb", "-x", str(deb), str(draft))
        deb.unlink()
    # The newest has its modules under /usr, and its image beside them.
    if not (draft / "lib").exists():
        (draft / "usr/lib").rename(draft / "lib")
    version = release(draft)
    if not (draft / "boot").exists():
        (draft / "boot").mkdir()
        (draft / "lib/modules" / version / "vmlinuz").rename(draft / f"boot/vmlinuz-{version}")
    run("depmod", "-a", "-b", str(draft), version)
    draft.rename(tree)
