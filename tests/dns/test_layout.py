# SPDX-License-Identifier: Apache-2.0
"""`dns/` holds an import package and must not be one: a package named dns would hide dnspython."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("folder", ["dns", "tests/dns"])
def test_no_package_is_named_dns(folder: str) -> None:
    assert (ROOT / folder).is_dir()
    assert not (ROOT / folder / "__init__.py").exists()
