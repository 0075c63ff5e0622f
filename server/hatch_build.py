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
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SOURCES = Path("src/bert_serving/server/model/native")

# the levels that are told apart when it is loaded, and how a compiler is told them
LEVELS = {
    "x86_64": {
        "avx512_bf16": ["-march=x86-64-v4", "-mprefer-vector-width=512", "-mavx512bf16"],
        "avx512": ["-march=x86-64-v4", "-mprefer-vector-width=512"],
        "avx2": ["-march=x86-64-v3"],
    },
    "aarch64": {"neon": ["-march=armv8-a"]},
}
FLAGS = [
    *("-std=gnu11", "-O3", "-fPIC", "-Wall", "-Wextra", "-Werror", "-Wno-psabi"),
    *("-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math"),
    "-falign-loops=64",
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
            library = root / SOURCES / f"kernels.{level}.so"
            if self._compile(compiler, flags, library):
                build_data["artifacts"].append(str(library.relative_to(root)))
        if build_data["artifacts"]:
            build_data["pure_python"] = False
            tag = sysconfig.get_platform().replace("-", "_").replace(".", "_")
            build_data["tag"] = f"py3-none-{tag}"

    def _compile(self, compiler: str, flags: list[str], library: Path) -> bool:
        """Compile the kernels; the OpenMP they call is torch's, so none is linked."""
        library.unlink(missing_ok=True)  # one of older sources is worse than none
        with tempfile.TemporaryDirectory() as folder:
            compiled = Path(folder, library.name)
            objects = []
            commands = []
            for source in sorted(library.parent.glob("*.c")):
                objects.append(str(Path(folder, source.stem + ".o")))
                commands.append([*FLAGS, *flags, "-fopenmp", "-c", str(source), "-o", objects[-1]])
            for arguments in (*commands, ["-shared", *objects, "-o", str(compiled)]):
                done = subprocess.run(  # noqa: S603  # the compiler that the user has
                    [compiler, *arguments], capture_output=True, text=True, check=False
                )
                if done.returncode:
                    self.app.display_warning(f"no {library.name}: {done.stderr[:500]}")
                    return False
            partial = library.with_suffix(".partial")
            shutil.copyfile(compiled, partial)
            partial.replace(library)
        return True
