# SPDX-License-Identifier: Apache-2.0
"""What holds for every test: properties have no wall-clock deadline: the machine may be busy."""

from hypothesis import settings

settings.register_profile("svcproxy", deadline=None)
settings.load_profile("svcproxy")
