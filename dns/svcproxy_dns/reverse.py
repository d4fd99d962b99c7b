# SPDX-License-Identifier: Apache-2.0
"""Which Services and endpoints have an address, for PTR and for what serves DNS itself. Pure.

A cluster IP comes before endpoints. Only Services that exist count, as everywhere.
"""

from collections.abc import Callable, Iterator

from svcproxy.names.records import EndpointRecord, ServiceRecord
from svcproxy_dns.groups import Groups
from svcproxy_dns.service import ServiceNames

FindService = Callable[[str, str], ServiceNames | None]
"""The Service of a namespace and name."""


class ReverseIndex:
    """Services and endpoints by canonical address."""

    def __init__(self, find_service: FindService) -> None:
        self._find_service = find_service
        self._services: Groups[str, ServiceNames] = Groups()
        self._endpoints: Groups[str, EndpointRecord] = Groups()

    def change_service(self, service: ServiceNames, old: ServiceRecord | None, new: ServiceRecord | None) -> None:
        """Another record is in force."""
        before = dict.fromkeys(old.cluster_ips) if old is not None else {}
        after = dict.fromkeys(new.cluster_ips) if new is not None else {}
        for ip in before.keys() - after.keys():
            self._services.discard(ip, service)
        for ip in after.keys() - before.keys():
            self._services.add(ip, service)

    def add(self, endpoint: EndpointRecord) -> None:
        """Take in an endpoint that is not held."""
        self._endpoints.add(endpoint.ip, endpoint)

    def discard(self, endpoint: EndpointRecord) -> None:
        """Take out an endpoint that is held."""
        self._endpoints.discard(endpoint.ip, endpoint)

    def services(self, ip: str) -> list[ServiceNames]:
        """The Services that have the address as a cluster IP: one at rest."""
        return [service for service in self._services.get(ip) if service.exists]

    def endpoints(self, ip: str) -> Iterator[tuple[ServiceNames, EndpointRecord]]:
        """The endpoints that have the address, each with its Service."""
        for endpoint in self._endpoints.get(ip):
            service = self._find_service(endpoint.namespace, endpoint.name)
            if service is not None and service.exists and not service.is_alias:
                yield service, endpoint

    def names(self, ip: str) -> list[tuple[str, ...]]:
        """The names that the address points to, as labels left of the zone."""
        if services := self.services(ip):
            return [service.labels for service in services]
        names: list[tuple[str, ...]] = [
            (service.endpoints.label(endpoint), *service.labels) for service, endpoint in self.endpoints(ip)
        ]
        return names if len(names) < 2 else list(dict.fromkeys(names))
