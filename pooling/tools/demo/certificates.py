"""A certificate authority for one run of the demo, and the service's certificate.

Created with the ``cryptography`` package if it is installed, otherwise with the
``openssl`` command; both create the same pair.
"""

from __future__ import annotations

import datetime
import ipaddress
import os
import subprocess
from pathlib import Path
from typing import NamedTuple

__all__ = ["Certificates", "make_certificates"]

ADDRESS = "127.0.0.1"

_OPENSSL_CONFIG = f"""
[req]
distinguished_name = name
prompt = no
[name]
CN = pooling demo
[authority]
basicConstraints = critical, CA:TRUE
keyUsage = critical, keyCertSign
subjectKeyIdentifier = hash
[server]
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = serverAuth
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
subjectAltName = IP:{ADDRESS}
"""


class Certificates(NamedTuple):
    """Paths of PEM files, and the tool that created them."""

    authority: Path
    certificate: Path
    key: Path
    maker: str


def make_certificates(folder: Path) -> Certificates | None:
    """Create both in ``folder``; return ``None`` if neither tool works."""
    files = (folder / "authority.pem", folder / "server.pem", folder / "server.key")
    for maker, make in (("cryptography", _by_cryptography), ("openssl", _by_openssl)):
        try:
            make(*files)
        except (ImportError, OSError, subprocess.SubprocessError):
            continue  # not available or too old: some versions of LibreSSL lack an option
        return Certificates(*files, maker)
    return None


def _by_cryptography(authority: Path, certificate: Path, key: Path) -> None:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    def build(name: str, public: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
        now = datetime.datetime.now(datetime.timezone.utc)
        return (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "pooling demo")]))
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        )

    def usage(*names: str) -> x509.KeyUsage:
        every = (
            "digital_signature", "content_commitment", "key_encipherment", "data_encipherment",
            "key_agreement", "key_cert_sign", "crl_sign", "encipher_only", "decipher_only",
        )  # fmt: skip
        return x509.KeyUsage(**{name: name in names for name in every})

    ca_key = ec.generate_private_key(ec.SECP256R1())
    ca = (
        build("pooling demo", ca_key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage("key_cert_sign"), critical=True)
        .sign(ca_key, hashes.SHA256())
    )
    own_key = ec.generate_private_key(ec.SECP256R1())
    address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(ADDRESS))])
    signer = x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key())
    own = (
        build(ADDRESS, own_key.public_key())
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(usage("digital_signature"), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(address, critical=False)
        .add_extension(signer, critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    authority.write_bytes(ca.public_bytes(pem))
    certificate.write_bytes(own.public_bytes(pem))
    key.write_bytes(
        own_key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )


def _by_openssl(authority: Path, certificate: Path, key: Path) -> None:
    config = authority.with_name("openssl.cnf")
    config.write_text(_OPENSSL_CONFIG)
    ca_key, request = authority.with_name("authority.key"), authority.with_name("server.csr")
    new = ["req", "-new", "-config", str(config), "-nodes", "-newkey", "rsa:2048"]
    days = ["-days", "1", "-sha256"]
    commands: list[list[str]] = [
        [*new, "-x509", "-extensions", "authority", *days, "-keyout", str(ca_key), "-out",
         str(authority)],
        [*new, "-subj", f"/CN={ADDRESS}", "-keyout", str(key), "-out", str(request)],
        ["x509", "-req", "-in", str(request), "-CA", str(authority), "-CAkey", str(ca_key),
         "-set_serial", str(int.from_bytes(os.urandom(8), "big")), "-extfile", str(config),
         "-extensions", "server", *days, "-out", str(certificate)],
    ]  # fmt: skip
    for command in commands:
        subprocess.run(
            ["openssl", *command], stdin=subprocess.DEVNULL, capture_output=True, check=True
        )
