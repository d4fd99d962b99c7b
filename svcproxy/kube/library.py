# SPDX-License-Identifier: Apache-2.0
"""The part of kubernetes-asyncio that is used: its loaders of kubeconfig and in-cluster credentials.

Importing them the plain way runs the packages' `__init__` modules, which import a module for every kind of object there
is: 948 modules and 39 MB that nobody here uses, against 59 modules and 2.4 MB for the loaders alone. So the packages
are entered without running them: while the loaders are imported, empty modules with the right search path stand in
their place. Should the library ever be cut differently, the plain import takes over.
"""

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

_ROOT = "kubernetes_asyncio"
_PACKAGES = {_ROOT: "", f"{_ROOT}.client": "client", f"{_ROOT}.config": "config"}


@contextmanager
def _without_package_code() -> Iterator[None]:
    """Stand in for the packages, unless they are loaded already. Nothing of it is left behind."""
    if _ROOT in sys.modules:
        yield
        return
    spec = importlib.util.find_spec(_ROOT)
    if spec is None or not spec.submodule_search_locations:
        raise ImportError(f"{_ROOT} is not installed")
    root = Path(spec.submodule_search_locations[0])
    stand_ins = {name: ModuleType(name) for name in _PACKAGES}
    for name, module in stand_ins.items():
        module.__path__ = [str(root / _PACKAGES[name])]
    sys.modules.update(stand_ins)
    try:
        configuration = importlib.import_module(f"{_ROOT}.client.configuration").Configuration
        # What the loaders take from the client package; of ApiClient they use the name alone.
        stand_ins[f"{_ROOT}.client"].__dict__.update(Configuration=configuration, ApiClient=object)
        yield
    except BaseException:
        for name in [name for name in sys.modules if name.partition(".")[0] == _ROOT]:
            del sys.modules[name]
        raise
    else:
        for name in stand_ins:
            del sys.modules[name]


try:
    with _without_package_code():
        from kubernetes_asyncio.client.configuration import Configuration
        from kubernetes_asyncio.config import kube_config
        from kubernetes_asyncio.config.config_exception import ConfigException
        from kubernetes_asyncio.config.incluster_config import InClusterConfigLoader
except (ImportError, AttributeError):
    from kubernetes_asyncio.client.configuration import Configuration
    from kubernetes_asyncio.config import kube_config
    from kubernetes_asyncio.config.config_exception import ConfigException
    from kubernetes_asyncio.config.incluster_config import InClusterConfigLoader

__all__ = ["ConfigException", "Configuration", "InClusterConfigLoader", "kube_config"]
