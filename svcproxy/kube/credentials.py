# SPDX-License-Identifier: Apache-2.0
"""Who we are to the API servers: a kubeconfig's context, the Pod's service account, or nobody.

kubernetes-asyncio reads tokens, certificates and exec plugins; this module decides when to read again: when a file has
changed, when a token is about to expire, when a server says 401, and tokens in files once a minute in any case.
"""

import asyncio
import hashlib
import logging
import os
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Protocol

import yaml

from svcproxy.config import KubeConfig
from svcproxy.errors import ApiUnavailable, ConfigError, Problem
from svcproxy.kube.kubeconfig import Selected, select
from svcproxy.kube.library import ConfigException, Configuration, InClusterConfigLoader, kube_config

log = logging.getLogger(__name__)

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
CHECK_INTERVAL = 10.0
"""Seconds between two looks at the files' stamps."""
REREAD_INTERVAL = 60.0
"""Seconds after which a token in a file is read again whatever its stamp says."""
RENEW_INTERVAL = 5.0
"""Shortest time between two readings on request of a server (401)."""
EXEC_TIMEOUT = 60.0
"""Time for an exec plugin to answer."""
EXPIRY_MARGIN = timedelta(minutes=1)
"""A token is replaced this long before it expires."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """Everything a request needs besides its URL."""

    server: str
    """The server the credentials name, without a trailing slash; empty if they name none."""
    in_cluster: bool
    """Whether `server` is the in-cluster Service address."""
    authorization: str | None
    """Value of the Authorization header."""
    tls: ssl.SSLContext
    tls_server_name: str | None = None
    """The name to verify, instead of the URL's host."""
    proxy: str | None = None
    verifies: bool = True
    """Whether TLS is used and proves that a server belongs to the cluster."""
    expires: datetime | None = None


@dataclass(frozen=True, slots=True)
class Loaded:
    """Credentials and when to read them again."""

    credentials: Credentials
    files: tuple[str, ...] = ()
    reread: bool = False
    """Whether to read again every `REREAD_INTERVAL`."""


class Loader(Protocol):
    """Reads credentials from one place."""

    async def load(self) -> Loaded:
        """Read them now. Raises `ConfigError` for what a person must change, `ApiUnavailable` for what may pass."""
        ...


class TlsContexts:
    """Makes TLS contexts, and the same one again while the certificates are the same: connections stay usable."""

    def __init__(self) -> None:
        self._digest = b""
        self._context: ssl.SSLContext | None = None

    def context(
        self, ca: str | None, certificate: str | None, key: str | None, *, verify: bool = True
    ) -> ssl.SSLContext:
        """A client context from PEM files. Raises `OSError` and `ssl.SSLError`."""
        digest = hashlib.sha256(b"verify" if verify else b"")
        for path in (ca, certificate, key):
            digest.update(b"\0" + (Path(path).read_bytes() if path else b""))
        if self._context is not None and self._digest == digest.digest():
            return self._context
        context = ssl.create_default_context(cafile=ca)
        # Cluster CAs made by kubeadm and others lack the extensions that Python 3.13 demands; Go does not.
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        if certificate:
            context.load_cert_chain(certificate, key)
        if not verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        self._context, self._digest = context, digest.digest()
        return context


class KubeconfigLoader:
    """One context of a kubeconfig."""

    def __init__(self, paths: str, context: str | None) -> None:
        """`paths`: one or several, separated by colons as in `$KUBECONFIG`."""
        self._paths = [Path(path).expanduser().absolute() for path in paths.split(os.pathsep) if path]
        self._context = context
        self._tls = TlsContexts()

    def read(self) -> Selected:
        """The context as it stands in the files. Raises `ConfigError`."""
        documents: list[tuple[str, object]] = []
        for path in self._paths:
            try:
                documents.append((str(path), yaml.safe_load(path.read_bytes())))
            except FileNotFoundError:
                continue  # kubectl: a file of several that does not exist is passed over
            except (OSError, yaml.YAMLError) as exc:
                mark = getattr(exc, "problem_mark", None)
                line = mark.line + 1 if mark is not None else None
                raise ConfigError([Problem(f"cannot read the kubeconfig: {exc}", str(path), line)]) from exc
        if not documents:
            raise ConfigError([Problem("no such kubeconfig", ":".join(map(str, self._paths)))])
        return select(documents, self._context)

    async def load(self) -> Loaded:
        """Read files and run the exec plugin, if there is one."""
        selected = self.read()
        loader = kube_config.KubeConfigLoader(config_dict=selected.document, config_base_path="")
        configuration: Any = Configuration()
        try:
            async with asyncio.timeout(EXEC_TIMEOUT):
                await loader.load_and_set(configuration)
            tls = self._tls.context(
                configuration.ssl_ca_cert,
                configuration.cert_file,
                configuration.key_file,
                verify=configuration.verify_ssl,
            )
        except TimeoutError as exc:
            raise ApiUnavailable(f"credentials: the exec plugin took longer than {EXEC_TIMEOUT:.0f} s") from exc
        except (ConfigException, OSError, ValueError, TypeError, KeyError) as exc:
            # ssl.SSLError is an OSError; the others come from base64, from JSON and from plugins that answer oddly.
            if selected.uses_exec:
                raise ApiUnavailable(f"credentials: {exc}") from exc
            raise ConfigError([Problem(f"cannot use the credentials: {exc}", selected.files[0])]) from exc
        finally:
            # The library writes inline keys and certificates to temporary files, and would keep them until exit.
            kube_config._cleanup_temp_files()
        expires = getattr(loader, "exec_plugin_expiry", None)
        credentials = Credentials(
            server=configuration.host.rstrip("/"),
            in_cluster=False,
            authorization=_header(configuration.api_key.get("BearerToken")),
            tls=tls,
            tls_server_name=configuration.tls_server_name,
            proxy=configuration.proxy,
            verifies=configuration.verify_ssl and configuration.host.startswith("https:"),
            expires=expires,
        )
        return Loaded(credentials, selected.files, reread=not selected.uses_exec)


class ServiceAccountLoader:
    """The Pod's service account, whose projected token the kubelet replaces from time to time."""

    def __init__(self, environ: Mapping[str, str], folder: Path = SERVICE_ACCOUNT) -> None:
        self._environ = dict(environ)
        self._token = folder / "token"
        self._ca = folder / "ca.crt"
        self._tls = TlsContexts()

    def present(self) -> bool:
        """Whether there is one."""
        return self._token.is_file()

    async def load(self) -> Loaded:
        """Read token and CA."""
        named = bool(self._environ.get("KUBERNETES_SERVICE_HOST") and self._environ.get("KUBERNETES_SERVICE_PORT"))
        # Without the variables the account still serves URLs given by the user; the library insists on an address.
        address = {} if named else {"KUBERNETES_SERVICE_HOST": "unused", "KUBERNETES_SERVICE_PORT": "443"}
        configuration: Any = Configuration()
        loader = InClusterConfigLoader(
            str(self._token), str(self._ca), try_refresh_token=False, environ={**self._environ, **address}
        )
        try:
            loader.load_and_set(configuration)
            tls = self._tls.context(str(self._ca), None, None)
        except (ConfigException, OSError) as exc:
            # The kubelet may be about to write them.
            raise ApiUnavailable(f"service account in {self._token.parent}: {exc}") from exc
        credentials = Credentials(
            server=configuration.host if named else "",
            in_cluster=True,
            authorization=_header(configuration.api_key.get("BearerToken")),
            tls=tls,
        )
        return Loaded(credentials, (str(self._token), str(self._ca)), reread=True)


class AnonymousLoader:
    """No credentials: for URLs given by the user, such as that of a `kubectl proxy`."""

    async def load(self) -> Loaded:
        """The system's certificate authorities and nothing else."""
        return Loaded(Credentials("", in_cluster=False, authorization=None, tls=ssl.create_default_context()))


def loader_for(
    config: KubeConfig, environ: Mapping[str, str] = os.environ, service_account: Path = SERVICE_ACCOUNT
) -> Loader:
    """The place that the configuration means: its kubeconfig, `$KUBECONFIG`, the service account, or nobody.

    Reads the kubeconfig to check it. Raises `ConfigError` with every problem in it, and when nothing names a server.
    """
    if paths := config.kubeconfig or environ.get("KUBECONFIG"):
        loader = KubeconfigLoader(paths, config.context)
        loader.read()
        return loader
    account = ServiceAccountLoader(environ, service_account)
    if account.present():
        return account
    if not config.api_servers:
        text = "no API server: give a kubeconfig, API server URLs or manifests, or run in a Pod with a service account"
        raise ConfigError([Problem(text, path="kube")])
    return AnonymousLoader()


class Authenticator:
    """The credentials in force. A reading that fails leaves the last good ones."""

    def __init__(self, loader: Loader, clock: Callable[[], float]) -> None:
        self._loader = loader
        self._clock = clock
        self._lock = asyncio.Lock()
        self._loaded: Loaded | None = None
        self._stamps: tuple[object, ...] = ()
        self._read_at = self._checked_at = self._renewed_at = float("-inf")
        self.reads = 0
        """Readings, good and bad."""

    async def current(self) -> Credentials:
        """The credentials to use now, read again if it is time. Raises `ApiUnavailable` while there are none."""
        async with self._lock:
            if self._due():
                await self._read()
            return self._good()

    async def renew(self) -> Credentials:
        """A server refused the credentials: read them again, unless that was done within `RENEW_INTERVAL`."""
        async with self._lock:
            if self._clock() - self._renewed_at >= RENEW_INTERVAL:
                self._renewed_at = self._clock()
                await self._read()
            return self._good()

    def _good(self) -> Credentials:
        if self._loaded is None:
            raise ApiUnavailable("no usable credentials")
        return self._loaded.credentials

    def _due(self) -> bool:
        loaded, now = self._loaded, self._clock()
        if loaded is None:
            return True
        if now - self._checked_at < CHECK_INTERVAL:
            return False
        self._checked_at = now
        if loaded.reread and now - self._read_at >= REREAD_INTERVAL:
            return True
        expires = loaded.credentials.expires
        if expires is not None and expires - EXPIRY_MARGIN <= datetime.now(UTC):
            return True
        return _stamps(loaded.files) != self._stamps

    async def _read(self) -> None:
        self._read_at = self._checked_at = self._clock()
        self.reads += 1
        try:
            loaded = await self._loader.load()
        except (ApiUnavailable, ConfigError) as exc:
            if self._loaded is None:
                raise ApiUnavailable(str(exc)) from exc
            log.warning("credentials cannot be read, the last good ones stay", extra={"cause": str(exc)})
            self._stamps = _stamps(self._loaded.files)
            return
        self._loaded = loaded
        self._stamps = _stamps(loaded.files)


def _stamps(files: tuple[str, ...]) -> tuple[object, ...]:
    """What tells whether the files changed, symbolic links followed."""
    found: list[object] = []
    for path in files:
        try:
            stat = Path(path).stat()
            found.append((stat.st_ino, stat.st_mtime_ns, stat.st_size))
        except OSError:
            found.append(None)
    return tuple(found)


def _header(token: str | None) -> str | None:
    """The Authorization header; files of tokens often end in a newline, which the library keeps."""
    header = token.strip() if token else None
    if header and not (header.isascii() and header.isprintable()):
        raise ApiUnavailable("credentials: the token holds characters that no token has")
    return header
