# SPDX-License-Identifier: Apache-2.0
"""Credentials as files and plugins give them, and when they are read again."""

import base64
import datetime as dt
import json
import os
import stat
import sys
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from svcproxy.config import KubeConfig
from svcproxy.errors import ApiUnavailable, ConfigError
from svcproxy.kube.credentials import (
    CHECK_INTERVAL,
    RENEW_INTERVAL,
    REREAD_INTERVAL,
    AnonymousLoader,
    Authenticator,
    KubeconfigLoader,
    ServiceAccountLoader,
    loader_for,
)

SERVER = "https://127.0.0.1:6443"


@pytest.fixture(scope="module")
def pem() -> tuple[str, str]:
    """A certificate, of itself, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")])
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    encoded = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return certificate.public_bytes(serialization.Encoding.PEM).decode(), encoded.decode()


def kubeconfig(path: Path, user: dict[str, Any], **cluster: Any) -> Path:
    path.write_text(
        json.dumps(
            {
                "clusters": [{"name": "c", "cluster": {"server": SERVER, **cluster}}],
                "users": [{"name": "u", "user": user}],
                "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
                "current-context": "x",
            }
        )
    )
    return path


async def authorization(path: Path) -> str | None:
    return (await KubeconfigLoader(str(path), None).load()).credentials.authorization


async def test_a_token_and_a_certificate_authority(tmp_path: Path, pem: tuple[str, str]) -> None:
    data = base64.b64encode(pem[0].encode()).decode()
    path = kubeconfig(tmp_path / "config", {"token": "secret"}, **{"certificate-authority-data": data})
    loaded = await KubeconfigLoader(str(path), None).load()
    assert loaded.credentials.server == SERVER
    assert loaded.credentials.authorization == "Bearer secret"
    assert loaded.credentials.verifies is True
    assert [each["serialNumber"] for each in loaded.credentials.tls.get_ca_certs()] == ["01"]


async def test_a_token_file_wins_over_a_token_and_is_relative_to_the_kubeconfig(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("from-file\n")
    path = kubeconfig(tmp_path / "config", {"token": "inline", "tokenFile": "token"})
    assert await authorization(path) == "Bearer from-file"


@pytest.mark.parametrize("inline", [True, False], ids=["inline", "files"])
async def test_a_client_certificate(tmp_path: Path, pem: tuple[str, str], inline: bool) -> None:
    if inline:
        certificate, key = (base64.b64encode(text.encode()).decode() for text in pem)
        user = {"client-certificate-data": certificate, "client-key-data": key}
    else:
        (tmp_path / "c.crt").write_text(pem[0])
        (tmp_path / "c.key").write_text(pem[1])
        user = {"client-certificate": "c.crt", "client-key": "c.key"}
    loader = KubeconfigLoader(str(kubeconfig(tmp_path / "config", user)), None)
    first, second = await loader.load(), await loader.load()
    assert first.credentials.authorization is None
    assert first.credentials.tls is second.credentials.tls, "connections stay usable while the certificate is the same"


def plugin(path: Path, script: str) -> str:
    path.write_text(f"#!{sys.executable}\n{script}")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def exec_user(command: str, **more: Any) -> dict[str, Any]:
    return {"exec": {"command": command, "apiVersion": "client.authentication.k8s.io/v1", **more}}


async def test_an_exec_plugin(tmp_path: Path) -> None:
    expires = (dt.datetime.now(dt.UTC) + dt.timedelta(hours=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
    answer = {
        "apiVersion": "client.authentication.k8s.io/v1",
        "kind": "ExecCredential",
        "status": {"token": "from-plugin", "expirationTimestamp": expires},
    }
    command = plugin(tmp_path / "plugin", f"print({json.dumps(json.dumps(answer))})\n")
    loaded = await KubeconfigLoader(str(kubeconfig(tmp_path / "config", exec_user(command))), None).load()
    assert loaded.credentials.authorization == "Bearer from-plugin"
    assert loaded.reread is False, "a plugin is not run more often than its token expires"


@pytest.mark.parametrize(
    "script",
    [
        pytest.param("raise SystemExit(1)", id="fails"),
        pytest.param("print('no JSON')", id="no JSON"),
        pytest.param('print(\'{"kind": "ExecCredential"}\')', id="no status"),
    ],
)
async def test_an_exec_plugin_that_fails_may_work_later(tmp_path: Path, script: str) -> None:
    path = kubeconfig(tmp_path / "config", exec_user(plugin(tmp_path / "plugin", script)))
    with pytest.raises(ApiUnavailable):
        await KubeconfigLoader(str(path), None).load()


@pytest.mark.parametrize(
    ("user", "key", "text"),
    [
        pytest.param({"username": "admin", "password": "x"}, "users[u].username", "1.19", id="basic authentication"),
        pytest.param({"auth-provider": {"name": "gcp"}}, "users[u].auth-provider", "'gcp'", id="auth provider"),
        pytest.param({"as": "root", "token": "x"}, "users[u].as", "impersonation", id="impersonation"),
        pytest.param({"client-certificate": "c"}, "users[u].client-key", "needs its key", id="certificate without key"),
        pytest.param(
            {"exec": {"command": "p", "apiVersion": "client.authentication.k8s.io/v1alpha1"}},
            "users[u].exec.apiVersion",
            "v1alpha1",
            id="exec plugin of the alpha API",
        ),
    ],
)
def test_removed_methods_are_refused_by_name(tmp_path: Path, user: dict[str, Any], key: str, text: str) -> None:
    path = kubeconfig(tmp_path / "config", user)
    with pytest.raises(ConfigError) as caught:
        KubeconfigLoader(str(path), None).read()
    assert any(p.path == key and text in p.message and p.file == str(path) for p in caught.value.problems)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        pytest.param(None, "no such kubeconfig", id="absent"),
        pytest.param("a: [", "cannot read the kubeconfig", id="no YAML"),
        pytest.param("clusters: 5", "Expected", id="wrong types"),
        pytest.param("{}", "no context is given", id="empty"),
        pytest.param("current-context: x", "no entry named 'x'", id="no such context"),
    ],
)
def test_kubeconfigs_that_cannot_be_used(tmp_path: Path, content: str | None, text: str) -> None:
    path = tmp_path / "config"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError, match=text):
        KubeconfigLoader(str(path), None).read()


def test_several_files_are_merged_and_the_first_wins(tmp_path: Path) -> None:
    first = kubeconfig(tmp_path / "first", {"token": "first"})
    second = kubeconfig(tmp_path / "second", {"token": "second"})
    selected = KubeconfigLoader(f"{first}{os.pathsep}{tmp_path / 'none'}{os.pathsep}{second}", None).read()
    assert selected.document["users"][0]["user"]["token"] == "first"
    assert set(selected.files) >= {str(first), str(second)}


def account(folder: Path, token: str, pem: tuple[str, str]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "ca.crt").write_text(pem[0])
    following = folder / "token.next"
    following.write_text(token)
    following.rename(folder / "token")
    return folder


async def test_the_service_account_and_its_rotation(tmp_path: Path, pem: tuple[str, str]) -> None:
    environ = {"KUBERNETES_SERVICE_HOST": "10.96.0.1", "KUBERNETES_SERVICE_PORT": "443"}
    now = [0.0]
    authenticator = Authenticator(ServiceAccountLoader(environ, account(tmp_path / "sa", "one", pem)), lambda: now[0])
    first = await authenticator.current()
    assert (first.authorization, first.server, first.in_cluster) == ("Bearer one", "https://10.96.0.1:443", True)
    account(tmp_path / "sa", "two", pem)
    assert (await authenticator.current()).authorization == "Bearer one", "not looked at again so soon"
    now[0] += CHECK_INTERVAL
    assert (await authenticator.current()).authorization == "Bearer two"
    assert (await authenticator.current()).tls is first.tls


async def test_a_401_has_them_read_again_but_not_in_a_storm(tmp_path: Path, pem: tuple[str, str]) -> None:
    now = [0.0]
    loader = ServiceAccountLoader({}, account(tmp_path / "sa", "one", pem))
    authenticator = Authenticator(loader, lambda: now[0])
    await authenticator.current()
    account(tmp_path / "sa", "two", pem)
    assert (await authenticator.renew()).authorization == "Bearer two"
    reads = authenticator.reads
    for _ in range(100):
        await authenticator.renew()
    assert authenticator.reads == reads
    now[0] += RENEW_INTERVAL
    await authenticator.renew()
    assert authenticator.reads == reads + 1


async def test_credentials_that_vanish_leave_the_last_good_ones(tmp_path: Path, pem: tuple[str, str]) -> None:
    now = [0.0]
    loader = ServiceAccountLoader({}, account(tmp_path / "sa", "one", pem))
    authenticator = Authenticator(loader, lambda: now[0])
    await authenticator.current()
    (tmp_path / "sa" / "token").unlink()
    now[0] += REREAD_INTERVAL
    assert (await authenticator.current()).authorization == "Bearer one"


async def test_a_token_that_no_header_can_carry_is_refused(tmp_path: Path) -> None:
    path = kubeconfig(tmp_path / "config", {"token": "a\nX-Injected: b"})
    with pytest.raises(ApiUnavailable, match="characters"):
        await KubeconfigLoader(str(path), None).load()


def test_where_credentials_come_from(tmp_path: Path, pem: tuple[str, str]) -> None:
    path = kubeconfig(tmp_path / "config", {"token": "x"})
    folder = account(tmp_path / "sa", "one", pem)
    nowhere = tmp_path / "nowhere"
    assert isinstance(loader_for(KubeConfig(kubeconfig=str(path)), {}, folder), KubeconfigLoader)
    assert isinstance(loader_for(KubeConfig(), {"KUBECONFIG": str(path)}, folder), KubeconfigLoader)
    assert isinstance(loader_for(KubeConfig(), {}, folder), ServiceAccountLoader)
    assert isinstance(loader_for(KubeConfig(api_servers=(SERVER,)), {}, nowhere), AnonymousLoader)
    with pytest.raises(ConfigError, match="no API server"):
        loader_for(KubeConfig(), {}, nowhere)
