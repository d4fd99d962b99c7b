# SPDX-License-Identifier: Apache-2.0
"""core/v1 Namespace: DNS answers differ between a namespace without a name and no such namespace."""

import msgspec

from svcproxy.model.meta import NamespacedName, ObjectMeta


class Namespace(msgspec.Struct, frozen=True, gc=False, omit_defaults=True, rename="camel"):
    """A Namespace; only its existence is used."""

    metadata: ObjectMeta

    @property
    def key(self) -> NamespacedName:
        """The object's key."""
        return self.metadata.key
