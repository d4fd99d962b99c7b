# SPDX-License-Identifier: Apache-2.0
"""Build hook: with SVCPROXY_COMPILE=1 the modules listed in tools/compiled-modules go into the wheel compiled too.

mypyc itself is called, in a copy of the packages: hatch-mypyc builds in place and takes the second package root,
`dns/`, for the only one.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

PACKAGES = {"svcproxy": "svcproxy", "svcproxy_dns": "dns/svcproxy_dns"}
"""Where the packages are in the checkout; in the copy they are side by side, as in the wheel."""
MYPYC_FLAGS = ("--config-file=", "--strict", "--ignore-missing-imports", "--python-version=3.11")


class CompileHook(BuildHookInterface):  # type: ignore[type-arg]  # hatchling's own default
    """See the module."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, and have the objects included beside their sources."""
        if version != "standard" or os.environ.get("SVCPROXY_COMPILE") != "1":
            return
        root = Path(self.root)
        self._scratch = Path(tempfile.mkdtemp(prefix="svcproxy-compile-"))
        compile_into(self._scratch, root)
        built = {
            path for where in ("*.so", *(f"{name}/**/*.so" for name in PACKAGES)) for path in self._scratch.glob(where)
        }
        build_data["force_include"] = {str(path): str(path.relative_to(self._scratch)) for path in built}
        build_data["pure_python"] = False
        build_data["infer_tag"] = True

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove the copy."""
        del version, build_data, artifact_path
        if hasattr(self, "_scratch"):
            shutil.rmtree(self._scratch, ignore_errors=True)


def compile_into(scratch: Path, root: Path) -> None:
    """Copy the packages of `root` to `scratch` and compile the listed modules there, beside their sources."""
    for name, place in PACKAGES.items():
        shutil.copytree(root / place, scratch / name, ignore=shutil.ignore_patterns("__pycache__"))
    modules = (root / "tools" / "compiled-modules").read_text().split()
    mypyc = Path(sys.executable).parent / "mypyc"
    no_paths = f"{os.environ.get('CFLAGS', '')} -g0 -ffile-prefix-map={scratch}=."  # equal sources, equal octets
    environment = os.environ | {"MYPYPATH": str(scratch), "CFLAGS": no_paths.strip()}
    ran = subprocess.run(
        [str(mypyc), *MYPYC_FLAGS, *modules], cwd=scratch, env=environment, capture_output=True, text=True, check=False
    )
    if ran.returncode:
        raise SystemExit(f"mypyc failed:\n{ran.stdout}{ran.stderr}")
