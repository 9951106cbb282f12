"""What an agent's pod may do is enough, and each of its capabilities is needed: the table of docs/install.md.

k8snet runs here as a container runtime would start it: with these capabilities and no others, mounts and a cgroup
namespace of its own, /proc/sys read-only, beside a process 1 that has the node's mounts (one of the tests' own, because
a machine's need not let itself be looked at). A runtime's profiles (seccomp, AppArmor) are not here.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from k8snet.lab.cluster import objects
from k8snet.lab.lab import Lab
from k8snet.remote.spec import CAPABILITIES
from live.conftest import patience

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: network namespaces and BPF")

SYS_RESOURCE = 24  # linux/capability.h
NODE = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", '"$@"; exit $?', "sh")
MOUNTS = "mount --bind /proc/sys /proc/sys && mount -o remount,bind,ro /proc/sys && exec"
TRACE = ("trace", "--from", "shop/cart", "--to", "shop/svc/payments:80", "--send", "1", "--wait", "1s", "-o", "json")


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab.up("iptables-legacy") as running:
        running.run_in("node-1", ["iptables", "-P", "FORWARD", "DROP"], check=True)
        yield running


def privileges(without: str) -> list[str]:
    # Not everybody has SYS_RESOURCE to give away; it is for old kernels.
    [held] = re.findall(r"^CapBnd:\s+(\w+)$", Path("/proc/self/status").read_text(), re.MULTILINE)
    lacking = "" if int(held, 16) >> SYS_RESOURCE & 1 else "SYS_RESOURCE"
    kept = [f"+{name.lower()}" for name in CAPABILITIES if name not in (without, lacking)]
    return ["setpriv", f"--bounding-set=-all,{','.join(kept)}", "--inh-caps=-all"]


def shows_addresses_to_all() -> bool:
    """The kernel hides no addresses (kallsyms_show_value): then nobody needs SYSLOG."""
    kernel = Path("/proc/sys/kernel")
    restricted, paranoid = ((kernel / name).read_text() for name in ("kptr_restrict", "perf_event_paranoid"))
    return int(restricted) == 0 and int(paranoid) <= 1


def contained(lab: Lab, tmp_path: Path, without: str = "") -> subprocess.CompletedProcess[str]:
    """A trace in something like a container, `without` one of its capabilities."""
    file = tmp_path / "inventory.json"
    file.write_text(json.dumps(objects(lab.inventory)))
    words = [*privileges(without), sys.executable, "-m", "k8snet", TRACE[0], "--inventory", str(file), *TRACE[1:]]
    return subprocess.run(
        [*NODE, "unshare", "--mount", "--cgroup", "sh", "-c", f'{MOUNTS} "$@"', "sh", *words],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60 * patience(),
    )


def logger(lab: Lab) -> str:
    return lab.run_in("node-1", ["cat", "/proc/sys/net/netfilter/nf_log/2"], check=True).stdout.strip()


def test_the_capabilities_are_enough(lab: Lab, tmp_path: Path) -> None:
    done = contained(lab, tmp_path)
    assert done.returncode == 1, done.stderr
    [finding] = json.loads(done.stdout)["findings"]
    assert (finding["code"], finding["named_by"]) == ("FORWARD_POLICY_DROP", "nflog")
    assert any(line.startswith("kfree_skb: ") and " at " in line for line in finding["evidence"])


def test_what_is_changed_is_undone_although_proc_sys_is_read_only(lab: Lab, tmp_path: Path) -> None:
    was = logger(lab)
    assert was != "nfnetlink_log"
    assert contained(lab, tmp_path).returncode == 1
    assert logger(lab) == was


def test_without_sys_admin_nothing_works(lab: Lab, tmp_path: Path) -> None:
    done = contained(lab, tmp_path, "SYS_ADMIN")
    assert done.returncode == 2
    assert "CAP_SYS_ADMIN" in done.stderr


@pytest.mark.parametrize("without", ["BPF", "PERFMON"])
def test_sys_admin_stands_for_what_came_from_it_and_check_knows(without: str) -> None:
    done = subprocess.run(
        [*privileges(without), sys.executable, "-m", "k8snet", "check", "-o", "json"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60 * patience(),
    )
    found = json.loads(done.stdout)
    assert found["tracing"] != "impossible"
    assert not [fact["name"] for fact in found["checks"] if without in fact["name"]]


@pytest.mark.parametrize("without", ["", "SYS_PTRACE"], ids=["with", "without"])
def test_sys_ptrace_shows_the_network_of_a_process_that_is_somebody_elses(without: str) -> None:
    """The lab's are pinned where everybody sees them; a pod's need not be."""
    there = subprocess.Popen(
        ["unshare", "--net", "setpriv", "--reuid=1000", "--clear-groups", "sh", "-c", "echo; exec sleep 60"],
        stdout=subprocess.PIPE,
    )
    try:
        assert there.stdout is not None
        there.stdout.read(1)
        inum = Path(f"/proc/{there.pid}/ns/net").stat().st_ino
        code = f"from k8snet.kernel.netns import scan; print({inum} in scan())"
        done = subprocess.run(
            [*privileges(without), sys.executable, "-c", code],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
            capture_output=True,
            text=True,
            check=True,
        )
    finally:
        there.kill()
        there.communicate()
    assert done.stdout.strip() == str(not without)


@pytest.mark.parametrize("capability", ["NET_ADMIN", "NET_RAW"])
def test_without_it_the_rule_is_not_named(lab: Lab, tmp_path: Path, capability: str) -> None:
    done = contained(lab, tmp_path, capability)
    assert done.returncode == 1, done.stderr
    report = json.loads(done.stdout)
    assert report["findings"][0]["code"] == "KERNEL_DROP"
    assert any("CAP_NET_RAW" in note for note in report["notes"]) == (capability == "NET_RAW")


@pytest.mark.skipif(shows_addresses_to_all(), reason="this kernel shows its addresses to everybody")
def test_without_syslog_the_kernels_function_is_not_named(lab: Lab, tmp_path: Path) -> None:
    done = contained(lab, tmp_path, "SYSLOG")
    [finding] = json.loads(done.stdout)["findings"]
    assert finding["code"] == "FORWARD_POLICY_DROP"
    assert not any(" at " in line for line in finding["evidence"])
