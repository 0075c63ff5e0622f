"""Compiles the CPU kernels into the wheel, for each level of the processor's instructions.

A library of C functions without Python's or torch's headers, so that it serves every version
of both. Without a C compiler the wheel has none, and the server computes the same through
torch, slower; so it is on systems other than Linux. `CC` names another compiler than `cc`.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SOURCE = Path("src/bert_serving/server/model/kernels_cpu.c")

# the levels that are told apart when it is loaded, and how a compiler is told them
LEVELS = {
    "x86_64": {
        "avx512": ["-march=x86-64-v4", "-mprefer-vector-width=512"],
        "avx2": ["-march=x86-64-v3"],
    },
    "aarch64": {"neon": ["-march=armv8-a"]},
}
FLAGS = [
    *("-std=gnu11", "-O3", "-fPIC", "-Wall", "-Wextra", "-Werror", "-Wno-psabi"),
    *("-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math"),
]


class KernelsBuildHook(BuildHookInterface[Any]):
    """What hatchling calls before it packs a wheel, or installs one in place."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:  # noqa: ARG002
        """Compile, and have the libraries packed."""
        if self.target_name != "wheel" or not sys.platform.startswith("linux"):
            return
        compiler = shutil.which(os.environ.get("CC", "cc"))
        if compiler is None:
            self.app.display_warning("no C compiler: the wheel is without the CPU kernels")
            return
        root = Path(self.root)
        for level, flags in LEVELS.get(platform.machine(), {}).items():
            library = root / SOURCE.with_suffix(f".{level}.so")
            if self._compile(compiler, flags, root / SOURCE, library):
                build_data["artifacts"].append(str(library.relative_to(root)))
        if build_data["artifacts"]:
            build_data["pure_python"] = False
            tag = sysconfig.get_platform().replace("-", "_").replace(".", "_")
            build_data["tag"] = f"py3-none-{tag}"

    def _compile(self, compiler: str, flags: list[str], source: Path, library: Path) -> bool:
        """Compile the kernels; the OpenMP they call is torch's, so none is linked."""
        partial = library.with_suffix(".partial")
        unlinked = partial.with_suffix(".o")
        compiling = [*FLAGS, *flags, "-fopenmp", "-c", str(source), "-o", str(unlinked)]
        linking = ["-shared", str(unlinked), "-o", str(partial)]
        for arguments in (compiling, linking):
            done = subprocess.run(  # noqa: S603  # the compiler that the user has
                [compiler, *arguments], capture_output=True, text=True, check=False
            )
            if done.returncode:
                self.app.display_warning(f"no kernels for {library.name}: {done.stderr[:500]}")
                return False
        unlinked.unlink()
        partial.replace(library)
        return True
