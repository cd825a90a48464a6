"""Who may talk to whom: a certificate authority per run, a certificate per member, TLS 1.3 with both sides shown.

The authority lives in the controller and its key never leaves it. A node gets its certificate and key over its
control pipe; the certificate names the node, the run and the generation it joined in. A peer without a
certificate of this run gets no further than the handshake. For ZeroMQ the same is done with CURVE keys.
"""

from __future__ import annotations

import datetime as dt
import os
import secrets
import ssl
import tempfile
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smolcluster.errors import PeerProtocolError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cryptography.x509 import Name

    from smolcluster.ports import Member

CLOCK_SKEW = dt.timedelta(days=30)
"""Certificates begin that long ago: a Raspberry Pi without a battery clock may live in the past."""
LIFETIME = dt.timedelta(days=365)
"""Longer than any run; the authority's key is gone with the controller anyway."""


@dataclass(frozen=True, kw_only=True)
class Credentials:
    """What one member needs to prove who it is; travels over the control pipe only.

    ``key`` is encrypted with ``passphrase``, because :mod:`ssl` can read keys from files only.
    """

    name: str
    run: str
    joined: int
    authority: str
    certificate: str
    key: str
    passphrase: str
    curve_public: str
    curve_secret: str

    def __repr__(self) -> str:
        return f"Credentials({self.name!r}, run={self.run!r}, joined={self.joined})"


class Authority:
    """The certificate authority of one run. Stays in the controller."""

    def __init__(self, run: str) -> None:
        from cryptography.hazmat.primitives.asymmetric import ec

        self.run = run
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _name(run, "authority", 0)
        self._curve_keys: dict[tuple[str, int], str] = {}
        self._certificate = self._sign(self._name, self._key.public_key(), LIFETIME, authority=True)
        self.pem = _pem(self._certificate)

    def issue(self, name: str, joined: int, lifetime: dt.timedelta = LIFETIME) -> Credentials:
        """A fresh certificate and keys for a member."""
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ec

        key = ec.generate_private_key(ec.SECP256R1())
        passphrase = secrets.token_urlsafe(24)
        sealed = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(passphrase.encode()),
        )
        certificate = self._sign(_name(self.run, name, joined), key.public_key(), lifetime, authority=False)
        public, secret = curve_keypair()
        self._curve_keys[name, joined] = public
        return Credentials(
            name=name,
            run=self.run,
            joined=joined,
            authority=self.pem,
            certificate=_pem(certificate),
            key=sealed.decode(),
            passphrase=passphrase,
            curve_public=public,
            curve_secret=secret,
        )

    def curve_keys(self, members: Iterable[Member]) -> dict[str, str]:
        """Public CURVE keys by name: what members need to know of each other with ``comms=zmq``."""
        return {member.name: self._curve_keys[member.name, member.joined] for member in members}

    def _sign(self, subject: Name, public_key: Any, lifetime: dt.timedelta, *, authority: bool) -> Any:
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes

        now = dt.datetime.now(dt.UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(public_key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - CLOCK_SKEW)
            .not_valid_after(now + lifetime)
            .add_extension(x509.BasicConstraints(ca=authority, path_length=0 if authority else None), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
        )
        return builder.sign(self._key, hashes.SHA256())


def curve_keypair() -> tuple[str, str]:
    """A CURVE key pair (public, secret), each 40 characters of Z85; Curve25519 keys need no ZeroMQ to be made."""
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

    key = X25519PrivateKey.generate()
    return _z85(key.public_key().public_bytes_raw()), _z85(key.private_bytes_raw())


class Identity:
    """A member's side of the handshake, made from its credentials."""

    def __init__(self, credentials: Credentials) -> None:
        self.name, self.run, self.joined = credentials.name, credentials.run, credentials.joined
        self.curve_public, self.curve_secret = credentials.curve_public, credentials.curve_secret
        self._client = _context(credentials, ssl.PROTOCOL_TLS_CLIENT)
        self._server = _context(credentials, ssl.PROTOCOL_TLS_SERVER)

    def wrap(self, sock: Any, *, dialled: bool) -> ssl.SSLSocket:
        """Run the handshake on a connected socket (its timeout holds). Raises OSError where a side is refused."""
        secured = self.prepare(sock, dialled=dialled)
        try:
            secured.do_handshake()
        except BaseException:
            secured.close()
            raise
        return secured

    def prepare(self, sock: Any, *, dialled: bool) -> ssl.SSLSocket:
        """The socket on which the handshake is yet to be run; it takes over the descriptor of ``sock``."""
        context = self._client if dialled else self._server
        try:
            return context.wrap_socket(
                sock, server_side=not dialled, suppress_ragged_eofs=False, do_handshake_on_connect=False
            )
        except OSError as error:
            # the peer has hung up already: Python leaves the socket that it was making open, and hands it to nobody
            for frame, _ in traceback.walk_tb(error.__traceback__):
                half_made = frame.f_locals.get("self")
                if isinstance(half_made, ssl.SSLSocket):
                    half_made.close()
            raise


def peer_of(sock: ssl.SSLSocket, run: str) -> tuple[str, int]:
    """(name, joined) on the verified certificate of the other side."""
    certificate = sock.getpeercert()
    pairs = dict(pair for part in (certificate or {}).get("subject", ()) for pair in part)  # type: ignore[misc]
    if pairs.get("organizationName") != run:
        raise PeerProtocolError("wrong run", f"certificate is of run {pairs.get('organizationName')!r}", fatal=True)
    name, _, joined = str(pairs.get("commonName", "")).rpartition("#")
    if not name or not joined.isdigit():
        raise PeerProtocolError("wrong identity", "certificate names no member", fatal=True)
    return name, int(joined)


def _context(credentials: Credentials, protocol: int) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False  # members are known by certificate, not by address: addresses change
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(cadata=credentials.authority)
    if protocol == ssl.PROTOCOL_TLS_SERVER:
        context.num_tickets = 0  # nobody reads on a connection that only we write on
    with tempfile.TemporaryDirectory(prefix="smolcluster-") as folder:
        chain, key = Path(folder, "chain.pem"), Path(folder, "key.pem")
        chain.write_text(credentials.certificate)
        key.touch(mode=0o600)
        key.write_text(credentials.key)
        context.load_cert_chain(os.fspath(chain), os.fspath(key), password=credentials.passphrase)
    return context


def _name(run: str, name: str, joined: int) -> Name:
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, run),
            x509.NameAttribute(NameOID.COMMON_NAME, f"{name}#{joined}"),
        ]
    )


def _pem(certificate: Any) -> str:
    from cryptography.hazmat.primitives.serialization import Encoding

    text: str = certificate.public_bytes(Encoding.PEM).decode()
    return text


_Z85 = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#"


def _z85(data: bytes) -> str:
    """ZeroMQ's base 85 (rfc.zeromq.org/spec/32): 4 bytes make 5 characters."""
    text = ""
    for start in range(0, len(data), 4):
        value, digits = int.from_bytes(data[start : start + 4], "big"), ""
        for _ in range(5):
            value, digit = divmod(value, 85)
            digits = _Z85[digit] + digits
        text += digits
    return text
