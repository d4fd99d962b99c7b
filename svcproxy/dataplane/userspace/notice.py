# SPDX-License-Identifier: Apache-2.0
"""What the data plane tells the operator: each thing when it begins and when it ends, never per flow."""

import logging
from collections.abc import Callable
from dataclasses import dataclass

from svcproxy.frontends.keys import FrontendKey

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Notice:
    """One message."""

    message: str
    """Constant text."""
    frontend: FrontendKey | None
    """What it is about, None for the data plane as a whole."""
    detail: str


Report = Callable[[Notice], None]


def log_notice(notice: Notice) -> None:
    """The default `Report`: a warning in the log."""
    subject = "" if notice.frontend is None else str(notice.frontend)
    log.warning(notice.message, extra={"frontend": subject, "detail": notice.detail})
