"""What a scenario may need of the machine beside the lab itself, and whether this one has it.

`link:KIND` and `qdisc:KIND` are tried in a network namespace that lives for a moment. `own machine` is asked for by
what changes the whole machine (nf_conntrack_max is one number for all network namespaces): only a virtual machine that
was started for the tests says that it is one (K8SNET_VM).
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterable
from functools import cache
from typing import Final

OWN_MACHINE: Final = "own machine"


def missing(needs: Iterable[str]) -> str | None:
    """Why a scenario with these needs cannot be played here; None when it can. Raises ValueError for no such need."""
    return next((why for need in needs if (why := _why(need))), None)


@cache
def _why(need: str) -> str | None:
    if need == OWN_MACHINE:
        return None if "K8SNET_VM" in os.environ else "it changes the whole machine: only in a virtual machine"
    what, _, kind = need.partition(":")
    tries = {
        "link": ("ip", "link", "add", "k8snet0", "type", kind),
        "qdisc": ("tc", "qdisc", "add", "dev", "lo", "root", "handle", "1:", kind),
    }
    if what not in tries:
        raise ValueError(need)
    done = subprocess.run(["unshare", "--net", *tries[what]], capture_output=True, text=True, check=False)
    return f"this kernel has no {what} of type {kind}" if done.returncode else None
