# SPDX-License-Identifier: Apache-2.0
"""A real etcd and one or more real kube-apiservers on free ports, in a scratch directory, stopped with their owner.

Every process dies with the test process, even when that is killed (`setpriv --pdeathsig`). The API servers share one
etcd, so that fail-over between them can be tested. RBAC is on; `admin_token` belongs to `system:masters`.
"""

import base64
import contextlib
import csv
import datetime as dt
import ipaddress
import json
import shutil
import socket
import ssl
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

from svcproxy.testing import binaries

READY_TIMEOUT = 90.0
"""Seconds an API server may take until /readyz; about 5 on an idle machine."""
SERVICE_CIDRS = "10.96.0.0/12,fd00:96::/108"


class ControlPlaneError(Exception):
    """The control plane did not come up; the message ends with the tail of the log."""


@dataclass
class Process:
    """One child that dies with us and leaves its output in a log file."""

    name: str
    command: Sequence[str]
    log: Path
    popen: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start, or start again after `kill`."""
        with self.log.open("ab") as log:
            self.popen = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *self.command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def kill(self) -> None:
        """kill -9, and wait until it is gone."""
        if self.popen is not None:
            self.popen.kill()
            self.popen.wait()
            self.popen = None

    def pause(self, stopped: bool) -> None:
        """SIGSTOP or SIGCONT: a process that holds its connections and says nothing."""
        assert self.popen is not None
        self.popen.send_signal(19 if stopped else 18)

    def tail(self) -> str:
        """The end of the log."""
        return self.log.read_text(errors="replace")[-2000:]


@dataclass
class ControlPlane:
    """A running control plane. Use as a context manager."""

    servers: int = 1
    host: str = "127.0.0.1"
    """The address that everything binds."""
    server_hosts: Sequence[str] = ()
    """An address for each API server, all on one port, as in a cluster; default: `host`, with ports of their own."""
    flags: Sequence[str] = ()
    etcd_data: Path | None = None
    """What an etcd holds at the start: a folder that `save_etcd` has made. It is copied, not used."""
    admin_token: str = "admin-token"
    tokens: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    """Further users: by token, the user's name and group."""
    parent: Path | None = None
    """Where the scratch directory is made; default: where the system makes temporary files."""
    directory: Path = field(init=False)
    urls: list[str] = field(init=False, default_factory=list)
    etcd: Process = field(init=False)
    apiservers: list[Process] = field(init=False, default_factory=list)
    controllers: list[Process] = field(init=False, default_factory=list)

    def __enter__(self) -> Self:
        self.directory = Path(tempfile.mkdtemp(prefix="svcproxy-cp-", dir=self.parent))
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def ca_file(self) -> Path:
        """The certificate that the API servers' certificates are signed with."""
        return self.directory / "ca.crt"

    @property
    def url(self) -> str:
        """The first API server."""
        return self.urls[0]

    def _start(self) -> None:
        hosts = list(self.server_hosts) or [self.host] * self.servers
        _write_pki(self.directory, [self.host, *hosts])
        with (self.directory / "tokens.csv").open("w", newline="") as handle:
            rows = csv.writer(handle)
            rows.writerow([self.admin_token, "admin", "admin", "system:masters"])
            rows.writerows([token, user, user, group] for token, (user, group) in self.tokens.items())
        client_port, peer_port, *ports = _free_ports(self.host, 2 + len(hosts))
        if self.server_hosts:
            ports = [ports[0]] * len(hosts)
        self._etcd_url = f"http://{_bracketed(self.host)}:{client_port}"
        peer_url = f"http://{_bracketed(self.host)}:{peer_port}"
        self.etcd = self._process(
            "etcd",
            [
                str(binaries.find("etcd")),
                f"--data-dir={self.directory / 'etcd'}",
                f"--listen-client-urls={self._etcd_url}",
                f"--advertise-client-urls={self._etcd_url}",
                f"--listen-peer-urls={peer_url}",
                f"--initial-advertise-peer-urls={peer_url}",
                f"--initial-cluster=default={peer_url}",
                "--unsafe-no-fsync",
                "--log-level=warn",
            ],
        )
        if self.etcd_data is not None:
            shutil.copytree(self.etcd_data, self.directory / "etcd")
        self.etcd.start()
        for number, (host, port) in enumerate(zip(hosts, ports, strict=True)):
            self.urls.append(f"https://{_bracketed(host)}:{port}")
            self.apiservers.append(self._process(f"apiserver-{number}", self._apiserver_command(host, port)))
            self.apiservers[-1].start()
        for number in range(len(hosts)):
            self.wait_ready(number)

    def start_controllers(self) -> None:
        """Start a kube-controller-manager and a kube-scheduler too. They bind their usual ports on loopback."""
        common = [f"--kubeconfig={self.kubeconfig()}", "--leader-elect=false", "--bind-address=127.0.0.1"]
        keys = [
            f"--service-account-private-key-file={self.directory / 'sa.key'}",
            f"--root-ca-file={self.ca_file}",
            "--allocate-node-cidrs=false",
        ]
        for name, arguments in (("kube-controller-manager", keys), ("kube-scheduler", [])):
            process = self._process(name, [str(binaries.find(name)), *common, *arguments])
            self.controllers.append(process)
            process.start()

    def _process(self, name: str, command: Sequence[str]) -> Process:
        return Process(name, command, self.directory / f"{name}.log")

    def _apiserver_command(self, host: str, port: int) -> list[str]:
        directory = self.directory
        loopback = ipaddress.ip_address(host).is_loopback
        return [
            str(binaries.find("kube-apiserver")),
            f"--etcd-servers={self._etcd_url}",
            f"--bind-address={host}",
            f"--secure-port={port}",
            f"--advertise-address={'192.0.2.1' if loopback else host}",
            f"--endpoint-reconciler-type={'none' if loopback else 'lease'}",
            f"--service-cluster-ip-range={SERVICE_CIDRS}",
            f"--tls-cert-file={directory / 'apiserver.crt'}",
            f"--tls-private-key-file={directory / 'apiserver.key'}",
            f"--client-ca-file={self.ca_file}",
            "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
            f"--service-account-key-file={directory / 'sa.pub'}",
            f"--service-account-signing-key-file={directory / 'sa.key'}",
            f"--token-auth-file={directory / 'tokens.csv'}",
            "--authorization-mode=Node,RBAC",
            "--allow-privileged=true",
            "--enable-priority-and-fairness=true",
            *self.flags,
        ]

    def wait_ready(self, number: int = 0) -> None:
        """Wait until an API server answers /readyz. Raises `ControlPlaneError` when it dies or takes too long."""
        process, deadline = self.apiservers[number], time.monotonic() + READY_TIMEOUT
        while time.monotonic() < deadline:
            if process.popen is None or process.popen.poll() is not None:
                raise ControlPlaneError(f"{process.name} ended: {process.tail()}")
            with contextlib.suppress(OSError):
                if self.request("GET", "/readyz", server=number) == b"ok":
                    return
            time.sleep(0.05)
        raise ControlPlaneError(f"{process.name} is not ready: {process.tail()}")

    def stop(self) -> None:
        """End every process and remove the scratch directory."""
        for process in [*self.controllers, *self.apiservers, *([self.etcd] if hasattr(self, "etcd") else [])]:
            process.kill()
        shutil.rmtree(self.directory, ignore_errors=True)

    def save_etcd(self, folder: Path) -> None:
        """End every process and leave what etcd holds in `folder`, which is complete if it is there."""
        for process in [*self.apiservers, self.etcd]:
            process.kill()
        unfinished = folder.with_suffix(".unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        shutil.copytree(self.directory / "etcd", unfinished)
        unfinished.rename(folder)

    def restart(self, number: int = 0) -> None:
        """Start an API server that was killed and wait until it is ready."""
        self.apiservers[number].start()
        self.wait_ready(number)

    def request(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | bytes | None = None,
        *,
        server: int = 0,
        token: str | None = None,
        content_type: str = "application/json",
    ) -> bytes:
        """One request as admin, or with another token. Raises `urllib.error.HTTPError` for 4xx and 5xx."""
        payload = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.urls[server] + path, data=payload, method=method)
        request.add_header("Authorization", f"Bearer {token or self.admin_token}")
        request.add_header("Content-Type", content_type)
        context = ssl.create_default_context(cafile=str(self.ca_file))
        opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
        )
        with opener.open(request, timeout=30) as response:
            content: bytes = response.read()
        return content

    def call(self, method: str, path: str, body: Mapping[str, Any] | None = None, *, server: int = 0) -> Any:
        """`request` with JSON in and out."""
        return json.loads(self.request(method, path, body, server=server))

    def delete(self, path: str) -> None:
        """Delete an object; fine if it is not there."""
        try:
            self.request("DELETE", path)
        except urllib.error.HTTPError as exc:
            if exc.code != 404:
                raise

    def kubectl(self, *arguments: str, stdin: bytes | None = None) -> str:
        """Run kubectl as admin and return what it prints. Raises `CalledProcessError`."""
        command = [str(binaries.find("kubectl")), f"--kubeconfig={self.kubeconfig()}", *arguments]
        return subprocess.run(command, input=stdin, capture_output=True, check=True).stdout.decode()

    def kubeconfig(self, token: str | None = None, server: int = 0) -> Path:
        """The path of a kubeconfig for a token, of admin by default."""
        path = self.directory / f"kubeconfig-{server}-{abs(hash(token))}"
        path.write_text(
            json.dumps(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "clusters": [
                        {
                            "name": "test",
                            "cluster": {"server": self.urls[server], "certificate-authority": str(self.ca_file)},
                        }
                    ],
                    "users": [{"name": "test", "user": {"token": token or self.admin_token}}],
                    "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
                    "current-context": "test",
                }
            )
        )
        return path

    def service_account_token(self, namespace: str, name: str) -> str:
        """A token bound to a ServiceAccount, from the TokenRequest API."""
        path = f"/api/v1/namespaces/{namespace}/serviceaccounts/{name}/token"
        answer = self.call("POST", path, {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}})
        token: str = answer["status"]["token"]
        return token

    def compact(self) -> None:
        """Forget etcd's history up to now, so that every older resource version answers 410 Gone."""
        key = base64.b64encode(b"compact").decode()
        current = self._etcd_call("/v3/kv/range", {"key": key})["header"]["revision"]
        self._etcd_call("/v3/kv/compaction", {"revision": current, "physical": True})

    def _etcd_call(self, path: str, body: Mapping[str, Any]) -> Any:
        request = urllib.request.Request(self._etcd_url + path, data=json.dumps(body).encode(), method="POST")
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=30) as response:
            return json.loads(response.read())


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _free_ports(host: str, count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        ports = []
        for _ in range(count):
            held = stack.enter_context(socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET))
            held.bind((host, 0))
            ports.append(held.getsockname()[1])
        return ports


def _write_pki(directory: Path, hosts: Sequence[str]) -> None:
    authority_key = ec.generate_private_key(ec.SECP256R1())
    authority = _certificate("svcproxy-test-ca", authority_key, None, authority_key, ())
    (directory / "ca.crt").write_bytes(authority.public_bytes(serialization.Encoding.PEM))
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = _certificate("kube-apiserver", key, authority, authority_key, [*hosts, "127.0.0.1", "10.96.0.1"])
    (directory / "apiserver.crt").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    _write_key(directory / "apiserver.key", key)
    signing = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    _write_key(directory / "sa.key", signing)
    (directory / "sa.pub").write_bytes(
        signing.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )


def _write_key(path: Path, key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> None:
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
        )
    )


def _certificate(
    name: str,
    key: ec.EllipticCurvePrivateKey,
    issuer: x509.Certificate | None,
    issuer_key: ec.EllipticCurvePrivateKey,
    hosts: Sequence[str],
) -> x509.Certificate:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = dt.datetime.now(dt.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(minutes=5))
        .not_valid_after(now + dt.timedelta(days=2))
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
    )
    if hosts:
        names: list[x509.GeneralName] = [x509.IPAddress(ipaddress.ip_address(host)) for host in dict.fromkeys(hosts)]
        names += [x509.DNSName("localhost"), x509.DNSName("kubernetes.default.svc")]
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return builder.sign(issuer_key, hashes.SHA256())


if __name__ == "__main__":
    with ControlPlane() as control_plane:
        input(f"kubeconfig: {control_plane.kubeconfig()}\nPress Enter to stop the control plane.\n")
