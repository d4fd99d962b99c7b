# SPDX-License-Identifier: Apache-2.0
"""Who serves: of several instances of a role on a node, one at a time, and no packet is lost at the change.

A new instance starts beside the old one and gets warm. Then, once in its life, it asks the one that serves for its
sockets; that one gives them away, lets go of the lock and stays as a stand-by. A stand-by asks nobody: it serves again
when the lock becomes free, which happens when its holder dies or ends. So the newest instance wins once, two instances
never take turns, and a new instance that crashes leaves the node to the old one.

Where a supervisor gives a descriptor store, the lock and the sockets are in it while this instance serves: a process
that is killed, fails, or ends to be started again is followed by one that goes on with them, and no stand-by comes
between.
"""

import asyncio
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from socket import socket
from typing import Protocol

from svcproxy.errors import HandoverError
from svcproxy.process.descriptor_store import DescriptorStore
from svcproxy.process.descriptors import close_all
from svcproxy.process.handover import HandoverServer, HasDescriptor, take
from svcproxy.process.instance import Instance, RunDirectory
from svcproxy.process.lock import POLL_INTERVAL, NodeLock

log = logging.getLogger(__name__)

LOCK_NAME = "lock"
"""What the lock is called in the descriptor store, besides the tenant's sockets."""
LOCK_TIMEOUT = 10.0
"""Seconds for a predecessor that has given its sockets away to let go of the lock."""


class Tenant(Protocol):
    """What serves while this instance is the node's."""

    async def start(self, inherited: Mapping[str, socket]) -> None:
        """Serve, on the predecessor's sockets as far as there are any, which are the tenant's from now on.

        Returns once everything known is being served.
        """
        ...

    def sockets(self) -> Mapping[str, HasDescriptor]:
        """What a successor takes, which tries to serve from now on: next comes `keep` or `release`."""
        ...

    def keep(self) -> None:
        """The successor did not get to serve: go on alone."""
        ...

    def release(self) -> None:
        """Stop reading from the sockets and close the descriptors at once. Established flows live on."""
        ...


class Succession:
    """One instance's claim on the node."""

    def __init__(
        self,
        run: RunDirectory,
        instance: Instance,
        lock_changed: Callable[[bool], None],
        store: DescriptorStore | None = None,
    ) -> None:
        """`lock_changed` is told whether this instance is the one that serves, at every change."""
        self._run = run
        self._instance = instance
        self._lock = NodeLock(run.node_lock, instance.paths.name)
        self._lock_changed = lock_changed
        self._store = store
        self._left: dict[str, socket] = {}
        """The sockets of the process before this one."""
        self._retires = False

    def resume(self) -> bool:
        """Take up what an earlier process of this instance has left in the store; whether it served when it ended.

        To be called before `run`, if at all. Clients may be waiting in the sockets, so `warm` should not be far.
        """
        found = self._store.contents() if self._store is not None else {}
        lock = found.pop(LOCK_NAME, None)
        if lock is None or not self._lock.adopt(lock):
            close_all(list(found.values()))
            if self._store is not None:
                self._store.clear()
            return False
        self._left = dict(_sockets(found))
        return True

    def retire(self) -> None:
        """Leave nothing in the store when `run` ends: this instance ends for good."""
        self._retires = True

    async def run(self, warm: asyncio.Event, make_tenant: Callable[[], Tenant]) -> None:
        """Serve whenever it is this instance's turn, until cancelled. Then the lock is free, or, if there is a store,
        in it: see `retire`.

        `warm`: when this instance knows enough to serve. `make_tenant` gives one for each turn.
        """
        try:
            await warm.wait()
            tenant = None if self._lock.try_acquire() else await self._take_over(make_tenant)
            while True:
                if tenant is None:
                    await self._lock.wait()
                    tenant = make_tenant()
                    left, self._left = self._left, {}
                    await tenant.start(left)
                await self._serve(tenant)
                await self._give_way()
                tenant = None
        finally:
            if self._retires or self._store is None:
                self._let_go()
            else:
                self._lock.leave()

    def _let_go(self) -> None:
        if self._store is not None:
            self._store.clear()
        self._lock.release()

    async def _take_over(self, make_tenant: Callable[[], Tenant]) -> Tenant | None:
        """A tenant in the place of the instance that serves; None, with nothing changed, when that one keeps it."""
        holder = self._run.active()
        if holder is None or holder.name == self._instance.paths.name:
            self._log_stand_by()
            return None
        tenant = make_tenant()
        try:
            with await take(holder.handover_socket) as takeover:
                try:
                    await tenant.start(takeover.sockets)
                    await takeover.serving()
                except HandoverError:
                    tenant.release()
                    raise
        except HandoverError as exc:
            log.warning("the instance that serves keeps its sockets", extra={"holder": holder.name, "cause": str(exc)})
            self._log_stand_by()
            return None
        async with asyncio.timeout(LOCK_TIMEOUT):
            await self._lock.wait()
        log.info("took over", extra={"from": holder.name})
        return tenant

    async def _give_way(self) -> None:
        """Let the successor, which has the sockets, take the lock; if it died meanwhile, go on after `LOCK_TIMEOUT`."""
        with suppress(TimeoutError):
            async with asyncio.timeout(LOCK_TIMEOUT):
                while self._lock.holder() is None:  # noqa: ASYNC110  # the successor is another process
                    await asyncio.sleep(POLL_INTERVAL)
        self._log_stand_by()

    def _log_stand_by(self) -> None:
        holder = self._lock.holder()
        log.info("standing by", extra={"holder": holder.instance if holder else ""})

    async def _serve(self, tenant: Tenant) -> None:
        """Be the node's instance until a successor has taken the sockets."""
        self._instance.make_current()
        self._lock_changed(True)
        if self._store is not None:
            held = {name: each.fileno() for name, each in tenant.sockets().items()}
            self._store.put({LOCK_NAME: self._lock.fileno(), **held})

        def taken() -> None:
            tenant.release()
            self._lock_changed(False)
            self._let_go()

        await HandoverServer(self._instance.paths.handover_socket, tenant.sockets, taken, on_kept=tenant.keep).run()


def _sockets(descriptors: Mapping[str, int]) -> Iterator[tuple[str, socket]]:
    """Those that are sockets; others are closed."""
    for name, descriptor in descriptors.items():
        try:
            found = socket(fileno=descriptor)
        except OSError:
            os.close(descriptor)
        else:
            found.setblocking(os.get_blocking(descriptor))
            yield name, found
