# SPDX-License-Identifier: Apache-2.0
"""The variables that describe Services to the containers of a pod, as the kubelet sets them. Pure.

Source: Kubernetes `pkg/kubelet/envvars` and `Kubelet.getServiceEnvVarMap`.
"""

from collections.abc import Iterable, Iterator

from svcproxy.model import Service
from svcproxy.model.service import CLUSTER_IP_NONE

_MASTER_NAMESPACE, _MASTER_NAME = "default", "kubernetes"
"""The API server's Service: pods of every namespace get it."""


def service_environment(services: Iterable[Service], namespace: str) -> list[tuple[str, str]]:
    """(name, value) of every variable that a pod of `namespace` gets, Services in order of name.

    Services without a virtual address have none. A Service of the pod's own namespace comes before the API server's
    of the same name.
    """
    chosen: dict[str, Service] = {}
    for service in services:
        if service.spec.cluster_ip in {None, "", CLUSTER_IP_NONE}:
            continue
        name = service.metadata.name
        if service.metadata.namespace == namespace:
            chosen[name] = service
        elif (service.metadata.namespace, name) == (_MASTER_NAMESPACE, _MASTER_NAME):
            chosen.setdefault(name, service)
    return [variable for name in sorted(chosen) for variable in _variables(chosen[name])]


def _variables(service: Service) -> Iterator[tuple[str, str]]:
    address, ports = service.spec.cluster_ip or "", service.spec.ports or ()
    prefix = _variable_name(service.metadata.name)
    yield f"{prefix}_SERVICE_HOST", address
    if not ports:
        return
    yield f"{prefix}_SERVICE_PORT", str(ports[0].port)
    for port in ports:
        if port.name:
            yield f"{prefix}_SERVICE_PORT_{_variable_name(port.name)}", str(port.port)
    host = f"[{address}]" if ":" in address else address
    yield f"{prefix}_PORT", f"{ports[0].protocol.lower()}://{host}:{ports[0].port}"
    for port in ports:
        link = f"{prefix}_PORT_{port.port}_{port.protocol}"
        yield link, f"{port.protocol.lower()}://{host}:{port.port}"
        yield f"{link}_PROTO", port.protocol.lower()
        yield f"{link}_PORT", str(port.port)
        yield f"{link}_ADDR", address


def _variable_name(text: str) -> str:
    return text.replace("-", "_").upper()
