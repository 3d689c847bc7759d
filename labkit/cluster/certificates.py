"""Certificates for one cluster of one kernel: whoever lacks them reaches neither its scheduler nor its workers,
and whoever comes without a word is turned away.

On a machine with several users every port of the loopback interface is open to all of them, and whoever reaches Dask's
runs code as its owner. The key is made in this kernel and reaches the workers through the pipe by which they are
started, so it stands in no file, command line or environment.
"""

from __future__ import annotations

import asyncio
import os
import ssl
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

from distributed import Security

from labkit.cluster import deadlines
from labkit.errors import SettingError

_NAME = "labkit"
_DAYS = 365
_ROLES = ("client", "scheduler", "worker")
_FILES = {"cert": "cert.pem", "key": "key.pem"}


def temporary_security() -> OwnSecurity:
    """A security whose certificate nobody else has; made in milliseconds.

    `distributed.Security.temporary` makes an RSA key, which takes up to a second. Here it is one of the curve P-256.

    >>> temporary_security().require_encryption
    True
    """
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    private, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, _NAME)])
    now = datetime.now(UTC)
    signed = (
        x509.CertificateBuilder(name, name, private.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))  # a clock may be set back
        .not_valid_after(now + timedelta(days=_DAYS))
        .sign(private, hashes.SHA256())
    )
    cert = signed.public_bytes(serialization.Encoding.PEM).decode()
    key = private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()
    roles = {f"tls_{role}_{part}": text for role in _ROLES for part, text in (("cert", cert), ("key", key))}
    return OwnSecurity(  # type: ignore[no-untyped-call]
        require_encryption=True, tls_ca_file=cert, tls_min_version=ssl.TLSVersion.TLSv1_3, tls_ciphers=None, **roles
    )


def write_certificates(folder: str | Path) -> Path:
    """Make a certificate for a cluster of several machines: "cert.pem" and "key.pem" in a folder of this user alone.

    Whoever has both files is let in, wherever it is copied to. Raises SettingError where the folder has one already.

    >>> write_certificates("cluster")       # doctest: +SKIP
    PosixPath('cluster')
    """
    made: Any = temporary_security()
    folder = Path(folder).expanduser()
    if there := [name for name in _FILES.values() if (folder / name).exists()]:
        raise SettingError(f"{folder} has a {there[0]} already, which a cluster may need: choose another folder.")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for part, text in (("cert", made.tls_client_cert), ("key", made.tls_client_key)):
        path = folder / _FILES[part]
        path.touch(0o600, exist_ok=False)
        path.write_text(text)
    return folder


def security_in(folder: str | Path) -> Security:
    """The security of a folder that `write_certificates` has made, or a copy of it; raises SettingError for no such."""
    folder = Path(folder).expanduser().absolute()
    paths = {part: folder / name for part, name in _FILES.items()}
    if missing := [path for path in paths.values() if not path.is_file()]:
        raise SettingError(
            f"security={str(folder)!r} has no {missing[0].name}: python -m labkit certificates DIR makes such a folder."
        )
    roles = {f"tls_{role}_{part}": str(path) for role in _ROLES for part, path in paths.items()}
    return Security(tls_ca_file=str(paths["cert"]), require_encryption=True, **roles)


class OwnSecurity(Security):
    """A security that holds certificate and key as text, which never become a file."""

    def _get_tls_context(self, tls: dict[str, Any], purpose: ssl.Purpose) -> ssl.SSLContext:
        # Dask would write the key into a temporary folder for a moment, for OpenSSL reads it from files only.
        if not hasattr(os, "memfd_create"):  # not Linux
            return super()._get_tls_context(tls, purpose)  # type: ignore[no-any-return,no-untyped-call]
        context = ssl.create_default_context(purpose, cadata=tls["ca_file"])
        with ExitStack() as opened:
            paths = []
            for part in ("cert", "key"):
                file = opened.enter_context(os.fdopen(os.memfd_create(_NAME), "w"))
                file.write(tls[part])
                file.flush()
                paths.append(f"/proc/self/fd/{file.fileno()}")
            context.load_cert_chain(*paths)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.verify_mode, context.check_hostname = ssl.CERT_REQUIRED, False  # both sides show the one certificate
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        return context


def turn_away_the_silent(server: Any) -> None:
    """Hang up on whoever comes to a scheduler, nanny or worker and does not prove in time who it is.

    Dask waits for ever, and so many of them would take up all file handles of the process.
    """
    for listener in server.listeners:
        listener._prepare_stream = partial(_prepared, listener._prepare_stream)
    pages = getattr(server, "http_server", None)
    if pages is not None:
        pages.conn_params.header_timeout = deadlines.REQUEST


async def _prepared(prepare: Any, stream: Any, address: str) -> Any:
    try:
        return await asyncio.wait_for(prepare(stream, address), deadlines.HANDSHAKE)
    except TimeoutError:
        stream.close()
        return None
