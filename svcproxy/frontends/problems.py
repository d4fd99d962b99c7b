# SPDX-License-Identifier: Apache-2.0
"""What had to be left out of proxied Services and their slices, by Service, for people. Pure."""

from svcproxy.model.meta import NamespacedName

PROBLEMS_MAX = 16
"""Messages kept of one Service and its slices; one more then says how many were left out."""


class Problems:
    """Messages by Service. A Service without problems costs nothing."""

    def __init__(self) -> None:
        self.messages: dict[NamespacedName, tuple[str, ...]] = {}
        """The Service's own, then those of its slices by name."""
        self._own: dict[NamespacedName, tuple[str, ...]] = {}
        self._slices: dict[NamespacedName, dict[str, tuple[str, ...]]] = {}

    def has_slice(self, service: NamespacedName, name: str) -> bool:
        """Whether anything is wrong with a slice."""
        return name in self._slices.get(service, ())

    def note_service(self, service: NamespacedName, messages: tuple[str, ...]) -> None:
        """What is wrong with the Service itself; nothing if empty."""
        if messages:
            self._own[service] = messages
        elif self._own.pop(service, None) is None:
            return
        self._refresh(service)

    def note_slice(self, service: NamespacedName, name: str, messages: tuple[str, ...]) -> None:
        """What is wrong with one slice; nothing if empty."""
        if messages:
            self._slices.setdefault(service, {})[name] = messages
        elif self.has_slice(service, name):
            del self._slices[service][name]
            if not self._slices[service]:
                del self._slices[service]
        else:
            return
        self._refresh(service)

    def forget_slices(self, service: NamespacedName) -> None:
        """The Service is not proxied any more: nobody reads its slices."""
        if self._slices.pop(service, None) is not None:
            self._refresh(service)

    def _refresh(self, service: NamespacedName) -> None:
        messages = [*self._own.get(service, ())]
        for _, found in sorted(self._slices.get(service, {}).items()):
            messages += found
        if len(messages) > PROBLEMS_MAX:
            messages[PROBLEMS_MAX:] = [f"{len(messages) - PROBLEMS_MAX} more problems"]
        if messages:
            self.messages[service] = tuple(messages)
        else:
            self.messages.pop(service, None)
