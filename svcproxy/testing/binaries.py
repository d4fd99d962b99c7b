# SPDX-License-Identifier: Apache-2.0
"""The programs that end-to-end tests and benchmarks run: Kubernetes', CoreDNS, a node's. Built from their Go modules.

A program is looked for in `$SVCPROXY_TEST_BINARIES` and on `PATH` first, where it counts only if it reports the wanted
version; else it is built once into a cache outside the checkout, in a file named by its version. Building needs `go`
and a module proxy; runc also a C compiler, pkg-config and libseccomp's headers. Standard library only: it runs before
anything is installed.

    python3 svcproxy/testing/binaries.py [PROGRAM…]     build what is missing, print where each program is
"""

import fcntl
import functools
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

KUBERNETES_VERSION = "1.37.2"
ETCD_VERSION = "3.7.3"
COREDNS_VERSION = "1.14.7"
CONTAINERD_VERSION = "2.4.2"
RUNC_VERSION = "1.5.3"
CNI_PLUGINS_VERSION = "1.10.0"
GO_LINE = "go 1.26.0"

KUBERNETES = "k8s.io/kubernetes"
CONTAINERD = "github.com/containerd/containerd/v2"
CNI_PLUGINS = "github.com/containernetworking/plugins"


@dataclass(frozen=True, slots=True)
class Program:
    """One program: the Go package it is built from and how it reports its version."""

    name: str
    module: str
    version: str
    folder: str = ""
    """Of the package in its module."""
    version_arguments: tuple[str, ...] = ("--version",)
    version_variable: str = ""
    """The Go variable that the build sets to the version, for programs that do not know it otherwise."""
    tags: str = ""

    @property
    def package(self) -> str:
        """The import path of the package."""
        return f"{self.module}/{self.folder}".removesuffix("/")


def _kubernetes(name: str, *version_arguments: str) -> Program:
    return Program(name, KUBERNETES, KUBERNETES_VERSION, f"cmd/{name}", version_arguments or ("--version",))


def _containerd(name: str, version_argument: str) -> Program:
    tags = "no_btrfs no_zfs no_devmapper no_aufs"
    variable = f"{CONTAINERD}/version.Version"
    return Program(name, CONTAINERD, CONTAINERD_VERSION, f"cmd/{name}", (version_argument,), variable, tags)


def _cni_plugin(name: str, folder: str) -> Program:
    variable = f"{CNI_PLUGINS}/pkg/utils/buildversion.BuildVersion"
    return Program(name, CNI_PLUGINS, CNI_PLUGINS_VERSION, f"plugins/{folder}/{name}", version_variable=variable)


PROGRAMS = {
    program.name: program
    for program in (
        Program("etcd", "go.etcd.io/etcd/server/v3", ETCD_VERSION),
        _kubernetes("kube-apiserver"),
        _kubernetes("kubectl", "version", "--client"),
        _kubernetes("kube-proxy"),
        Program("coredns", "github.com/coredns/coredns", COREDNS_VERSION, version_arguments=("-version",)),
        _kubernetes("kube-controller-manager"),
        _kubernetes("kube-scheduler"),
        _kubernetes("kubelet"),
        _containerd("containerd", "--version"),
        _containerd("containerd-shim-runc-v2", "-v"),
        _containerd("ctr", "--version"),
        Program(
            "runc", "github.com/opencontainers/runc", RUNC_VERSION, version_variable="main.version", tags="seccomp"
        ),
        _cni_plugin("ptp", "main"),
        _cni_plugin("loopback", "main"),
        _cni_plugin("host-local", "ipam"),
        _cni_plugin("portmap", "meta"),
    )
}


def cache_folder() -> Path:
    """Where built programs are kept: `$SVCPROXY_CACHE`, else `svcproxy` in the user's cache folder."""
    if chosen := os.environ.get("SVCPROXY_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "svcproxy"


@functools.cache
def find(name: str) -> Path:
    """The path of a program, built first if need be. Raises `CalledProcessError` if the build fails."""
    program = PROGRAMS[name]
    for candidate in _given(name):
        if _reports(candidate, program):
            return candidate
    built = cache_folder() / "bin" / f"{program.name}-{program.version}"
    if not built.exists():
        with _locked(cache_folder() / "build.lock"):
            if not built.exists():
                _build(program, built)
    return built


def _given(name: str) -> Iterator[Path]:
    if folder := os.environ.get("SVCPROXY_TEST_BINARIES"):
        candidate = Path(folder) / name
        if candidate.exists():
            yield candidate
    if found := shutil.which(name):
        yield Path(found)


def _reports(candidate: Path, program: Program) -> bool:
    answer = subprocess.run([candidate, *program.version_arguments], capture_output=True, text=True, check=False)
    return re.search(rf"\b{re.escape(program.version)}\b", answer.stdout + answer.stderr) is not None


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _build(program: Program, target: Path) -> None:
    print(f"building {program.name} {program.version}", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory(prefix="svcproxy-build-") as scratch:
        module = Path(scratch)
        if program.module == KUBERNETES:
            requires = _kubernetes_requires()
            flags = _kubernetes_ldflags()
        else:
            requires = f"require {program.module} v{program.version}\n"
            flags = "-s -w"
        if program.version_variable:
            flags += f" -X {program.version_variable}={program.version}"
        (module / "go.mod").write_text(f"module build/{program.name}\n{GO_LINE}\n{requires}tool {program.package}\n")
        environment = os.environ | {"GOFLAGS": "-mod=mod", "GOWORK": "off"}
        subprocess.run(["go", "mod", "tidy", "-e"], cwd=module, env=environment, check=True, capture_output=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        unfinished = target.with_name(f"{target.name}.unfinished")
        command = ["go", "build", f"-ldflags={flags}", f"-tags={program.tags}", "-o", str(unfinished), program.package]
        subprocess.run(command, cwd=module, env=environment, check=True, stdout=sys.stderr)
        unfinished.rename(target)


def _kubernetes_requires() -> str:
    """`k8s.io/kubernetes` replaces its staging modules by folders; out of its tree each needs its released version."""
    listed = subprocess.run(
        ["go", "mod", "download", "-json", f"k8s.io/kubernetes@v{KUBERNETES_VERSION}"],
        capture_output=True,
        text=True,
        check=True,
    )
    own_go_mod = Path(json.loads(listed.stdout)["GoMod"]).read_text()
    staged = re.findall(r"^\s*(?:replace )?(k8s\.io/\S+) => \./staging", own_go_mod, flags=re.MULTILINE)
    released = KUBERNETES_VERSION.removeprefix("1.")
    replaces = "".join(f"replace {module} => {module} v0.{released}\n" for module in staged)
    return f"require k8s.io/kubernetes v{KUBERNETES_VERSION}\n{replaces}"


def _kubernetes_ldflags() -> str:
    package = "k8s.io/component-base/version"
    major, minor, _ = KUBERNETES_VERSION.split(".")
    values = {"gitVersion": f"v{KUBERNETES_VERSION}", "gitMajor": major, "gitMinor": minor}
    return " ".join(["-s", "-w", *(f"-X {package}.{name}={value}" for name, value in values.items())])


def main(arguments: Sequence[str]) -> int:
    """Build the named programs, all of them by default, and print their paths."""
    unknown = [name for name in arguments if name not in PROGRAMS]
    if unknown:
        print(f"unknown program {unknown[0]!r}, known: {', '.join(PROGRAMS)}", file=sys.stderr)
        return 2
    for name in arguments or PROGRAMS:
        print(f"{name}\t{find(name)}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
