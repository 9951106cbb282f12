"""Hatchling's build hook: compiles the BPF programs before a wheel or an editable install is made.

In: the checkout (or the unpacked sdist). Out: tracer/k8snet/objects/k8snet.bpf.o, which the wheel then ships. The clang
command stands in the Makefile and nowhere else; this only runs it and says what to install when it fails.
"""

from __future__ import annotations

import subprocess
import sys
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class MakeBpf(BuildHookInterface[Any]):
    """Runs `make bpf` once per build."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, or end the build with what is missing."""
        if self.target_name != "wheel":
            return
        try:
            failed = subprocess.run(["make", "bpf"], cwd=self.root, check=False).returncode
        except FileNotFoundError:
            failed = 127
        if failed:
            # No exception: pip would show a traceback, and hide make's own message above it.
            sys.exit(
                "k8snet: could not compile the BPF programs (see make's output above)\n"
                "On Debian and Ubuntu: apt install make clang llvm libbpf-dev"
            )
