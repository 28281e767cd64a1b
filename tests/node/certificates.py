"""Certificates of a test: an authority, and what it signs, made with OpenSSL."""

import subprocess
from dataclasses import dataclass
from pathlib import Path

_CONFIG = """
[ca]
default_ca = here
[here]
dir = {folder}
database = {folder}/index
new_certs_dir = {folder}
serial = {folder}/serial
certificate = {folder}/ca.pem
private_key = {folder}/ca.key
default_md = sha256
policy = any
copy_extensions = copy
x509_extensions = leaf
unique_subject = no
[any]
commonName = supplied
[leaf]
basicConstraints = critical,CA:FALSE
"""


@dataclass(frozen=True)
class Signed:
    """The files of a certificate and of its key."""

    cert: Path
    key: Path


class Authority:
    """Who signs certificates; ``ca`` is the file that those need who trust it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        self.ca = folder / "ca.pem"
        (folder / "config").write_text(_CONFIG.format(folder=folder))
        (folder / "index").touch()
        (folder / "serial").write_text("01\n")
        self._run(
            *("req", "-x509", *_KEY, "-keyout", "ca.key", "-out", "ca.pem"),
            *("-subj", "/CN=authority", "-days", "2"),
        )

    def sign(self, name: str, *, names: str = "IP:127.0.0.1,DNS:localhost", to: str = "") -> Signed:
        """Return a certificate for ``names``; ``to`` is when it ends, by default in a day."""
        found = Signed(self.folder / f"{name}.pem", self.folder / f"{name}.key")
        self._run(
            *("req", "-new", *_KEY, "-keyout", found.key.name, "-out", f"{name}.csr"),
            *("-subj", f"/CN={name}", "-addext", f"subjectAltName={names}"),
        )
        until = ("-startdate", "20200101000000Z", "-enddate", to) if to else ("-days", "1")
        self._run(
            *("ca", "-batch", "-notext", "-config", "config", *until),
            *("-in", f"{name}.csr", "-out", found.cert.name),
        )
        found.key.chmod(0o600)
        return found

    def _run(self, *words: str) -> None:
        subprocess.run(["openssl", *words], cwd=self.folder, check=True, capture_output=True)


_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
