"""Certificates for tests, made when they are needed by Debian's `openssl`: one command each, some 20 ms.

Not by a package from PyPI: a Debian that can reach PyPI has `openssl`, because ca-certificates depends on it.
"""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

NEW = ("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "1")


@dataclass(frozen=True)
class Certificate:
    """Where a certificate and its private key stand, as PEM."""

    certificate: Path
    key: Path


class Authority:
    """A certificate authority in a directory; two with the same name do not know each other."""

    def __init__(self, directory: Path, name: str = "kubernetes") -> None:
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        self.own = self._make("ca", f"/CN={name}", "-addext", "keyUsage=critical,keyCertSign")

    def issue(self, name: str, groups: tuple[str, ...] = (), hosts: tuple[str, ...] = ()) -> Certificate:
        """For a user, as Kubernetes reads it (name in CN, groups in O), or for a server on `hosts` ("IP:…")."""
        subject = "".join(f"/O={group}" for group in groups) + f"/CN={name}"
        extensions = ["basicConstraints=critical,CA:FALSE"]
        if hosts:
            extensions.append(f"subjectAltName={','.join(hosts)}")
        arguments = [argument for extension in extensions for argument in ("-addext", extension)]
        signed = ("-CA", str(self.own.certificate), "-CAkey", str(self.own.key))
        return self._make(name.replace("/", "_").replace(":", "_"), subject, *signed, *arguments)

    def _make(self, stem: str, subject: str, *arguments: str) -> Certificate:
        made = Certificate(self.directory / f"{stem}.crt", self.directory / f"{stem}.key")
        files = ("-out", str(made.certificate), "-keyout", str(made.key))
        subprocess.run((*NEW, "-subj", subject, *files, *arguments), check=True, capture_output=True)
        return made
