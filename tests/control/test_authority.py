"""The fleet's authority: what it signs and refuses, how it changes; OpenSSL's own program is the judge."""

from __future__ import annotations

import os
import stat
import subprocess
import threading
import time
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed448, ed25519, rsa
from hypothesis import given
from hypothesis import strategies as st

from control.fleet import codes
from control.fleet.authority import LIFE_S, OVERLAP_S, Authority, AuthorityError, host_name, requested
from control.fleet.codes import Code
from control.fleet.listener import Listener
from control.fleet.revocation import Revocations
from oca.errors import ConfigError, FormatError
from oca.store import keyfile
from oca.store.keyfile import PrivateKey
from oca.trust import codeword, peers
from oca.trust.enrolment import request_for
from oca.trust.peers import Peer

PEM = serialization.Encoding.PEM
DAY = 86_400.0
NOW = float(int(time.time()))


def openssl(*arguments: str | Path, data: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        ["openssl", *map(str, arguments)], input=data, capture_output=True, timeout=100, check=False
    )


def verified(tmp_path: Path, bundle: str, leaf: str, *more: str) -> bool:
    """Whether `openssl verify` takes a certificate, strictly."""
    (tmp_path / "bundle.pem").write_text(bundle)
    (tmp_path / "leaf.pem").write_text(leaf)
    done = openssl("verify", "-x509_strict", *more, "-CAfile", tmp_path / "bundle.pem", tmp_path / "leaf.pem")
    return done.returncode == 0


def csr(key: PrivateKey | None = None, appliance: str = "north-1") -> str:
    return request_for(key or keyfile.new(), appliance)


def test_openssl_takes_what_it_issues(tmp_path: Path) -> None:
    """As client and as server, for thirty days, for what was asked and nothing of what the request says besides."""
    authority = Authority(tmp_path / "state")
    issued = authority.issue(csr(appliance="boss"), "north-1", "https://north-1.example:8080", NOW)
    for purpose in ("sslclient", "sslserver"):
        assert verified(tmp_path, authority.bundle, issued.pem, "-purpose", purpose)
    for at, good in ((NOW, True), (NOW + 29 * DAY, True), (NOW + 31 * DAY, False), (NOW - 2 * DAY, False)):
        assert verified(tmp_path, authority.bundle, issued.pem, "-attime", str(int(at))) == good
    text = openssl("x509", "-noout", "-text", data=issued.pem.encode()).stdout.decode()
    assert "Subject: CN = north-1\n" in text
    assert "URI:urn:oca:appliance:north-1, DNS:north-1.example\n" in text
    assert "CA:FALSE" in text
    assert "TLS Web Server Authentication, TLS Web Client Authentication" in text
    assert "boss" not in text
    assert issued.peer.ends == NOW + LIFE_S
    again = authority.issue(csr(), "north-1", "http://192.0.2.7", NOW)
    assert again.peer.serial != issued.peer.serial
    assert b"IP Address:192.0.2.7" in openssl("x509", "-noout", "-text", data=again.pem.encode()).stdout
    # A leaf signs nothing.
    (tmp_path / "leaf.pem").write_text(issued.pem)
    assert not verified(tmp_path, issued.pem, again.pem, "-partial_chain")


def test_its_files(tmp_path: Path) -> None:
    """A key that nobody else reads, P-256, ten years; the fingerprint is what OpenSSL says of the public key."""
    authority = Authority(tmp_path)
    assert stat.S_IMODE((tmp_path / "authority.key").stat().st_mode) == 0o600
    text = openssl("x509", "-noout", "-text", data=authority.bundle.encode()).stdout.decode()
    assert "ASN1 OID: prime256v1" in text
    assert "CA:TRUE, pathlen:0" in text
    assert 3649 * DAY < authority.ends - time.time() < 3651 * DAY
    public = openssl("pkey", "-in", tmp_path / "authority.key", "-pubout", "-outform", "DER").stdout
    assert openssl("dgst", "-sha256", "-hex", "-r", data=public).stdout.split()[0].decode() == authority.fingerprint
    assert Authority(tmp_path).fingerprint == authority.fingerprint
    assert sorted(path.name for path in tmp_path.iterdir()) == ["authority.key", "authority.pem"]


def test_many_start_at_once(tmp_path: Path) -> None:
    """They agree on one authority."""
    found: list[str] = []
    threads = [threading.Thread(target=lambda: found.append(Authority(tmp_path).fingerprint)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len(set(found)) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["authority.key", "authority.pem"]


def test_a_start_that_was_interrupted_is_finished(tmp_path: Path) -> None:
    """With the key alone the certificate is made again, and what was issued stays good."""
    authority = Authority(tmp_path)
    issued = authority.issue(csr(), "north-1", "", NOW)
    (tmp_path / "authority.pem").unlink()
    again = Authority(tmp_path)
    assert again.fingerprint == authority.fingerprint
    assert verified(tmp_path, again.bundle, issued.pem)


def test_files_that_cannot_be_used(tmp_path: Path) -> None:
    """A sentence that names the file; nothing is made anew over what may be restored."""
    Authority(tmp_path)
    key, listed = tmp_path / "authority.key", tmp_path / "authority.pem"
    kept = key.read_bytes()
    key.chmod(0o640)
    with pytest.raises(ConfigError, match=r"mode 0640\): chmod 600"):
        Authority(tmp_path)
    key.unlink()
    with pytest.raises(ConfigError, match="bring it back from a backup"):
        Authority(tmp_path)
    assert not key.exists()
    for data, said in ((keyfile.pem(keyfile.new()), "key of no authority"), (b"rubbish", "not a private key")):
        keyfile.write(key, data, 0o600)
        with pytest.raises(ConfigError, match=said):
            Authority(tmp_path)
    keyfile.write(key, kept, 0o600)
    listed.write_bytes(b"rubbish")
    with pytest.raises(ConfigError, match="no certificates in PEM form"):
        Authority(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot keep the fleet's authority"):
        Authority(tmp_path / "file" / "state")


@pytest.mark.parametrize(
    "key",
    [
        keyfile.new(),
        ed25519.Ed25519PrivateKey.generate(),
        rsa.generate_private_key(65537, 2048),
    ],
    ids=["p256", "ed25519", "rsa2048"],
)
def test_keys_that_are_taken(tmp_path: Path, key: PrivateKey) -> None:
    authority = Authority(tmp_path)
    issued = authority.issue(csr(key), "north-1", "https://[2001:db8::1]:8080", NOW)
    assert issued.key == peers.fingerprint(key.public_key())
    assert verified(tmp_path, authority.bundle, issued.pem)


def _request(key: object, algorithm: hashes.HashAlgorithm | None) -> str:
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return builder.sign(key, algorithm).public_bytes(PEM).decode()  # type: ignore[arg-type]


def _forged() -> str:
    """A request for a public key that whoever asks does not have: its signature is broken."""
    good = x509.load_pem_x509_csr(csr().encode()).public_bytes(serialization.Encoding.DER)
    broken = good[:-4] + bytes(byte ^ 1 for byte in good[-4:])
    return x509.load_der_x509_csr(broken).public_bytes(PEM).decode()


@pytest.mark.parametrize(
    ("request_pem", "said"),
    [
        (lambda: _request(rsa.generate_private_key(65537, 1024), hashes.SHA256()), "of a kind that is not taken"),
        (lambda: _request(ec.generate_private_key(ec.SECP384R1()), hashes.SHA384()), "of a kind that is not taken"),
        (lambda: _request(ed448.Ed448PrivateKey.generate(), None), "of a kind that is not taken"),
        (lambda: _request(dsa.generate_private_key(2048), hashes.SHA256()), "of a kind that is not taken"),
        (_forged, "not signed by its own key"),
        (lambda: "", "not a certificate request"),
        (
            lambda: "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n",
            "not a certificate",
        ),
        (lambda: csr()[:200], "not a certificate request"),
        (lambda: "x" * 20_000, "longer than"),
    ],
    ids=["rsa1024", "p384", "ed448", "dsa", "forged", "empty", "garbage", "cut", "long"],
)
def test_requests_that_are_refused(request_pem: object, said: str) -> None:
    with pytest.raises(FormatError, match=said):
        requested(request_pem())  # type: ignore[operator]


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("http://north-1.example:8080", "north-1.example"),
        ("https://NORTH.example", "north.example"),
        ("http://192.0.2.1:80", "192.0.2.1"),
        ("https://[2001:db8::1]:8443", "2001:db8::1"),
        ("https://[fe80::1%25eth0]:8443", None),
        ("http://bad_name.example", None),
        ("http://-x.example", None),
        ("http://a..example", None),
        ("http://" + "a" * 64 + ".example", None),
        ("http://%41.example", None),
        ("http://[::1", None),
        ("", None),
    ],
)
def test_names_from_urls(url: str, name: str | None) -> None:
    """A host that is no name that a certificate can have gets none; the box is told by its URI anyway."""
    found = host_name(url)
    assert (None if found is None else str(found.value)) == name


def _certificate(by: Authority, now: float = NOW) -> x509.Certificate:
    return x509.load_pem_x509_certificate(by.issue(csr(), "north-1", "", now).pem.encode())


def test_which_certificates_are_acceptable(tmp_path: Path) -> None:
    """Chain, role, time, revocation: each alone is reason enough to refuse."""
    ours, theirs = Authority(tmp_path / "ours"), Authority(tmp_path / "theirs")
    mine = _certificate(ours)
    assert peers.chained(mine, ours.trusted)
    assert not peers.chained(mine, theirs.trusted)
    assert not peers.chained(mine, [])
    assert not peers.chained(mine, [_certificate(ours)])
    seen = peers.of_certificate(mine)
    assert seen is not None
    box, nobody = Revocations(), Revocations()
    by_serial, by_box = Revocations(serials=frozenset({seen.serial})), Revocations(appliances=frozenset({"north-1"}))
    other = Revocations(frozenset({seen.serial + 1}), frozenset({"north-2"}))
    table: list[tuple[Peer | None, tuple[peers.Role, ...], float, Revocations, str]] = [
        (seen, ("appliance",), NOW, box, ""),
        (seen, ("controller", "appliance"), NOW, other, ""),
        (seen, ("controller",), NOW, box, "no business here"),
        (seen, ("appliance",), seen.begins - 1, box, "not valid yet"),
        (seen, ("appliance",), seen.begins, box, ""),
        (seen, ("appliance",), seen.ends - 1, box, ""),
        (seen, ("appliance",), seen.ends, box, "has expired"),
        (seen, ("appliance",), NOW, by_serial, "is revoked"),
        (seen, ("appliance",), NOW, by_box, "is revoked"),
        (Peer("controller", "", 7, 0, NOW + 1), ("controller",), NOW, by_box, ""),
        (None, ("appliance",), NOW, nobody, "of nobody in the fleet"),
    ]
    for who, roles, now, revoked, said in table:
        why = peers.refusal(who, roles, now, revoked)
        assert said in why, (who, roles, why)
        assert bool(said) == bool(why)


@pytest.mark.parametrize(
    "uris",
    [
        [],
        ["urn:oca:appliance:"],
        ["urn:oca:appliance:../x"],
        ["urn:oca:appliance:NORTH"],
        ["urn:oca:appliance:a", "urn:oca:appliance:b"],
        ["urn:oca:appliance:a", "urn:oca:controller"],
        ["urn:oca:controller:x"],
        ["https://north-1.example"],
    ],
)
def test_names_of_nobody(uris: list[str]) -> None:
    """Exactly one name of the fleet, or none counts."""
    fields = {
        "subjectAltName": (*(("URI", uri) for uri in uris), ("DNS", "urn:oca:controller")),
        "serialNumber": "0A",
        "notBefore": "Jan  1 00:00:00 2026 GMT",
        "notAfter": "Jan 31 00:00:00 2026 GMT",
    }
    assert peers.of_fields(fields) is None
    good = peers.of_fields(fields | {"subjectAltName": (("URI", "urn:oca:appliance:a"), ("URI", "https://x"))})
    assert good == Peer("appliance", "a", 10, 1767225600.0, 1769817600.0)


@given(st.integers(1, 2**159 - 1), st.floats(0, 2e9), st.floats(60, 1e8))
def test_renewal_is_due_at_two_thirds_with_jitter(serial: int, begins: float, life: float) -> None:
    """Never before 60 % and never after 71 % of the life, at the same moment however often it is asked."""
    at = peers.renew_at(begins, begins + life, serial)
    assert 0.6 * life <= at - begins <= 0.71 * life
    assert at == peers.renew_at(begins, begins + life, serial)


def test_boxes_do_not_renew_all_at_once() -> None:
    moments = sorted(peers.renew_at(0, 30 * DAY, serial) for serial in range(1, 1001))
    assert moments[-1] - moments[0] > 2 * DAY
    assert 19 * DAY < sum(moments) / len(moments) < 21 * DAY


@given(st.text(max_size=40))
def test_codes_from_anything(text: str) -> None:
    """Whatever is typed is a code or a sentence that does not repeat it."""
    try:
        assert len(codeword.canonical(text)) == 20
    except FormatError as error:
        assert len(text) < 6 or text not in str(error)  # noqa: PT017


def test_codes_are_easy_to_type() -> None:
    """However it is grouped; O for 0, I and L for 1; any one wrong character, and any two swapped, are noticed."""
    code = codeword.new()
    plain = codeword.canonical(code)
    typed = (code.lower(), plain, f" {plain[:3]} {plain[3:]}", code.replace("0", "o").replace("1", "L"))
    assert {codeword.canonical(one) for one in typed} == {plain}
    assert len({codeword.new() for _ in range(1000)}) == 1000
    slips = [plain[:at] + other + plain[at + 1 :] for at in range(20) for other in "0123456789ABCDEFGHJKMNPQRSTVWXYU"]
    slips += [plain[:at] + plain[at + 1] + plain[at] + plain[at + 2 :] for at in range(19)]
    for slip in slips:
        if slip != plain:
            with pytest.raises(FormatError):
                codeword.canonical(slip)


def test_which_codes_are_good() -> None:
    code, other = codeword.new(), codeword.new()
    kept = codes.hashed("north-1", code)
    assert code.replace("-", "") not in kept
    table = [
        (Code(kept, NOW + 1), "north-1", code, "good"),
        (Code(kept, NOW + 1), "north-1", code.lower().replace("-", " "), "good"),
        (Code(kept, NOW + 1), "north-2", code, "wrong"),
        (Code(kept, NOW + 1), "north-1", other, "wrong"),
        (Code(kept, NOW + 1), "north-1", "", "wrong"),
        (Code("", NOW + 1), "north-1", code, "wrong"),
        (Code("", NOW + 1), "north-1", "", "wrong"),
        (None, "north-1", code, "wrong"),
        (Code(kept, NOW), "north-1", code, "expired"),
        (Code(kept, NOW + 1, tries=codes.TRIES - 1), "north-1", code, "good"),
        (Code(kept, NOW + 1, tries=codes.TRIES), "north-1", code, "spent"),
        (Code(kept, NOW + 1, tries=codes.TRIES), "north-1", other, "wrong"),
        (Code(kept, NOW + 1, key="mine"), "north-1", code, "again"),
        (Code(kept, NOW + 1, key="yours"), "north-1", code, "used"),
        (Code(kept, NOW, key="mine"), "north-1", code, "expired"),
        (Code(kept, NOW + 1, key="mine"), "north-1", other, "wrong"),
    ]
    for stored, box, typed, verdict in table:
        assert codes.judge(stored, box, typed, "mine", NOW) == verdict, (stored, box, typed)


def test_another_authority_takes_over_without_a_gap(tmp_path: Path) -> None:
    """At every step what is in use is trusted by those who heard of the step before."""
    state = tmp_path / "state"
    authority = Authority(state, NOW)
    running = Authority(state)
    old_print, old_bundle = authority.fingerprint, authority.bundle
    old = authority.issue(csr(), "north-1", "", NOW).pem
    with pytest.raises(AuthorityError, match="no next authority"):
        authority.activate(NOW)
    assert authority.forget(NOW) == []

    new_print = authority.prepare(NOW)
    assert authority.prepare(NOW + 1) == new_print == authority.waiting != old_print
    assert authority.fingerprint == old_print
    assert len(authority.trusted) == 2
    both = authority.bundle
    assert authority.forget(NOW + 40 * DAY) == []
    with pytest.raises(AuthorityError, match="boxes hear of it daily"):
        authority.activate(NOW + OVERLAP_S - 60)

    assert running.refresh()
    assert not running.refresh()
    at = NOW + OVERLAP_S + 60
    assert authority.activate(at) == new_print == authority.fingerprint
    assert authority.waiting == ""
    assert running.refresh()
    new = running.issue(csr(), "north-1", "", NOW).pem
    assert verified(tmp_path, both, old)
    assert verified(tmp_path, both, new)
    assert verified(tmp_path, authority.bundle, old)
    assert not verified(tmp_path, old_bundle, new)

    with pytest.raises(AuthorityError, match="more days"):
        authority.forget(at + LIFE_S - 60)
    assert authority.forget(at + LIFE_S + 60) == [old_print]
    assert not verified(tmp_path, authority.bundle, old)
    assert verified(tmp_path, authority.bundle, new)
    assert Authority(state).fingerprint == new_print


def test_a_change_that_was_interrupted(tmp_path: Path) -> None:
    """A next key without a place in the list gets it when the step is done again."""
    authority = Authority(tmp_path)
    keyfile.write_once(tmp_path / "authority.key.next", keyfile.pem(keyfile.new()), 0o600)
    with pytest.raises(AuthorityError, match="no next authority"):
        authority.activate(NOW, force=True)
    waiting = authority.waiting
    assert authority.prepare(NOW) == waiting
    assert authority.activate(NOW, force=True) == waiting


def test_the_controllers_own_certificate_renews_itself(tmp_path: Path) -> None:
    """Before it ends, when its names change, when another authority signs; otherwise it stays."""
    authority = Authority(tmp_path, NOW)
    urls = ["https://control.example:8443", "https://192.0.2.1:8443"]
    listener = Listener(tmp_path, authority, urls, NOW)
    path = tmp_path / "controller.pem"
    first = path.read_text()
    assert verified(tmp_path, authority.bundle, first, "-purpose", "sslserver", "-verify_hostname", "control.example")
    assert b"URI:urn:oca:controller" in openssl("x509", "-noout", "-text", "-in", path).stdout
    assert stat.S_IMODE((tmp_path / "controller.key").stat().st_mode) == 0o600

    for at in (NOW, NOW + 18 * DAY):
        assert not listener.refresh(at)
    assert path.read_text() == first
    Listener(tmp_path, authority, urls[:1], NOW)
    assert path.read_text() == first
    assert listener.refresh(NOW + 22 * DAY)
    second = path.read_text()
    assert second != first

    Listener(tmp_path, authority, [*urls, "https://other.example"], NOW + 22 * DAY)
    third = path.read_text()
    assert b"DNS:other.example" in openssl("x509", "-noout", "-text", "-in", path).stdout
    Authority(tmp_path).prepare(NOW)
    Authority(tmp_path).activate(NOW, force=True)
    assert listener.refresh(NOW + 22 * DAY)
    assert path.read_text() != third
    path.write_text("rubbish")
    os.utime(path, (1, 1))
    listener.refresh(NOW + 22 * DAY)
    assert verified(tmp_path, Authority(tmp_path).bundle, path.read_text(), "-attime", str(int(NOW + 23 * DAY)))


def test_a_certificate_does_not_outlive_its_authority(tmp_path: Path) -> None:
    authority = Authority(tmp_path, NOW - 3640 * DAY)
    issued = authority.issue(csr(), "north-1", "", NOW)
    assert issued.peer.ends == authority.ends < NOW + 11 * DAY
