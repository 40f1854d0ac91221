"""DICOM over TLS as a caller: the hospital's authority, our certificate, and what is said when it fails."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import ehr
from tests import certificates
from tests.certificates import Authority

HOST = "127.0.0.1"


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"))


@contextmanager
def listening(tls: ssl.SSLContext | None) -> Iterator[int]:
    """A node called PACS."""
    with ehr.StorageListener("PACS", 0, take=lambda *_: ehr.Taken(), tls=tls) as node:
        yield node.port


def echo(port: int, *, host: str = HOST, **files: Path | None) -> None:
    node = ehr.Node("PACS", host, port, tls=True)
    ehr.DimseClient(node, tls=ehr.TlsFiles(**files), timeout_s=5).echo()


def test_the_hospitals_own_authority_is_trusted_where_it_is_named(authority: Authority) -> None:
    with listening(certificates.server(authority.issue(HOST))) as port:
        echo(port, ca=authority.ca)
        with pytest.raises(ehr.Refused, match=r"not trusted .*name the hospital's CA file"):
            echo(port)


def test_a_certificate_for_another_name_is_told_apart(authority: Authority) -> None:
    with (
        listening(certificates.server(authority.issue("pacs.hospital.example"))) as port,
        pytest.raises(ehr.Refused, match=r"made out for another name than 127\.0\.0\.1"),
    ):
        echo(port, ca=authority.ca)


def test_a_node_that_asks_who_calls_is_shown_our_certificate(authority: Authority, tmp_path: Path) -> None:
    ours, theirs = authority.issue("tessera.hospital.example"), authority.issue(HOST)
    with listening(certificates.server(theirs, asks_for=authority.ca)) as port:
        echo(port, ca=authority.ca, cert=ours.cert, key=ours.key)
        with pytest.raises(ehr.Refused, match="it asks for our certificate"):
            echo(port, ca=authority.ca)
        stranger = Authority(tmp_path, "Other CA").issue("tessera.hospital.example")
        with pytest.raises(ehr.Refused, match="it does not trust our certificate"):
            echo(port, ca=authority.ca, cert=stranger.cert, key=stranger.key)


def test_a_port_without_tls_is_told_apart(authority: Authority) -> None:
    with listening(None) as port, pytest.raises(ehr.Refused, match="it does not speak TLS on this port"):
        echo(port, ca=authority.ca)


def test_files_that_cannot_be_used_are_named(authority: Authority, tmp_path: Path) -> None:
    (tmp_path / "not.pem").write_text("nothing")
    pair = authority.issue(HOST)
    for files, words in (
        ({"ca": tmp_path / "away.pem"}, "away.pem cannot be used as the authority"),
        ({"ca": tmp_path / "not.pem"}, "not.pem cannot be used as the authority"),
        ({"cert": pair.cert}, "cannot be used as our certificate"),
        ({"cert": pair.cert, "key": tmp_path / "not.pem"}, "cannot be used as our certificate"),
        ({"key": pair.key}, "a private key needs its certificate"),
    ):
        with pytest.raises(ehr.Refused, match=words):
            echo(1, **files)
