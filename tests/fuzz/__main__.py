# SPDX-License-Identifier: Apache-2.0
"""Coverage-guided fuzzing of what strangers send: `make fuzz`, or `python -m tests.fuzz TARGET [FILE | FLAG]...`.

Flags are libFuzzer's. With the file of a crash it replays that. Seeds are made from the acceptance cases' cluster; the
corpus grows in `build/fuzz/TARGET`, crashes are written to `build/fuzz/crashes`.
"""

import sys
from collections.abc import Callable
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["svcproxy_dns"]):
    from tests.fuzz import targets

FOLDER = Path("build/fuzz")


def main(arguments: list[str]) -> None:
    if not arguments or arguments[0] not in targets.TARGETS:
        sys.exit(f"usage: python -m tests.fuzz {{{','.join(targets.TARGETS)}}} [FILE | FLAG]...")
    name, *rest = arguments
    target = targets.TARGETS[name]
    corpus, crashes = FOLDER / name, FOLDER / "crashes"
    for folder in (corpus, crashes):
        folder.mkdir(parents=True, exist_ok=True)
    if not any(not argument.startswith("-") for argument in rest):
        for number, seed in enumerate(target.seeds()):
            (corpus / f"seed-{number}").write_bytes(seed)
        rest.append(str(corpus))
    prefix = f"{crashes}/{name}-"
    atheris.Setup([sys.argv[0], f"-artifact_prefix={prefix}", *rest], told(name, target.check))
    atheris.Fuzz()


def told(name: str, check: Callable[[bytes], None]) -> Callable[[bytes], None]:
    """The check, which says how to do it again when it fails."""

    def checked(octets: bytes) -> None:
        try:
            check(octets)
        except BaseException:
            print(f"{octets.hex()}\nreplay: .venv/bin/python -m tests.fuzz {name} {FOLDER}/crashes/{name}-crash-...")
            raise

    return checked


if __name__ == "__main__":
    main(sys.argv[1:])
