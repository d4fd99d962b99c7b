# SPDX-License-Identifier: Apache-2.0
"""What an API server is made to have, object by object as it differs from what it had."""

import json
import urllib.error
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from svcproxy.testing.control_plane import ControlPlane

Object = dict[str, Any]


class Objects:
    """The objects that a test has an API server hold, by path."""

    def __init__(self, plane: ControlPlane) -> None:
        self._plane = plane
        self._known: dict[str, Object] = {}

    def bring(self, wanted: Mapping[str, Object]) -> None:
        """Delete what is not wanted, the newest first, and write what differs, in the order given."""
        for path in [path for path in reversed(self._known) if path not in wanted]:
            self.delete(path)
        for path, each in wanted.items():
            if self._known.get(path) != each:
                self.put(path, each)

    def put(self, path: str, each: Object) -> None:
        """Write an object, status and all. What cannot become what is wanted is deleted and made anew."""
        body = {key: value for key, value in each.items() if key != "status"}
        try:
            if path in self._known:
                try:
                    self._plane.request("PUT", path, body)
                except urllib.error.HTTPError as exc:
                    if exc.code != HTTPStatus.UNPROCESSABLE_ENTITY:
                        raise
                    self.delete(path)
            if path not in self._known:
                self._plane.request("POST", path.rpartition("/")[0], body)
        except urllib.error.HTTPError as exc:
            raise AssertionError(f"the API server refuses {json.dumps(each)}: {exc.read().decode()}") from exc
        if "status" in each:
            self.patch(f"{path}/status", {"status": each["status"]})
        self._known[path] = json.loads(json.dumps(each))

    def delete(self, path: str) -> None:
        """Delete an object; a namespace is gone at once, for nobody else would end its deletion."""
        self._plane.delete(path)
        if self._known.pop(path, {}).get("kind") == "Namespace":
            name = path.rpartition("/")[2]
            ended = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}, "spec": {"finalizers": []}}
            self._plane.request("PUT", f"{path}/finalize", ended)

    def patch(self, path: str, body: Object) -> None:
        """Merge into an object."""
        self._plane.request("PATCH", path, body, content_type="application/merge-patch+json")
