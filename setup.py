"""The extension module: pyllama/_kernels.pyx and pyllama/csrc/*.c, into one limited-API shared object; completions.

The same portable flags serve every file and every machine: a file of csrc/ names the instruction set it needs
in function attributes, and the choice among them is made at run time.

Environment switches:
    PYLLAMA_OPENMP=0                    build without OpenMP (default: use it if the compiler has it)
    PYLLAMA_WERROR=1                    warnings in csrc/ are errors
    PYLLAMA_DEBUG=1                     -O0 -g and assertions
    PYLLAMA_VNNI_IN_AVX2=1              kernels for AVX512-VNNI, its one instruction spelled out in AVX2, for tests
    PYLLAMA_SANITIZE=address,undefined  sanitizers; the interpreter then needs LD_PRELOAD of their runtimes
"""

import os
import sys
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError, LinkError
from setuptools.modified import newer_group

DEBUG = os.environ.get("PYLLAMA_DEBUG", "0") not in ("", "0")
WERROR = os.environ.get("PYLLAMA_WERROR", "0") not in ("", "0")
OPENMP = os.environ.get("PYLLAMA_OPENMP", "1") not in ("", "0")
SANITIZE = os.environ.get("PYLLAMA_SANITIZE", "")
# Free-threaded interpreters have no limited API; theirs is an ordinary wheel.
LIMITED_API = not sysconfig.get_config_var("Py_GIL_DISABLED")

# -ffp-contract=off: a*b+c is fused only where the canonical order (MODEL.md, "Numerics") says so.
# -fno-math-errno: sqrtf and fmaf become one instruction; no bit of a result changes.
FLAGS = ["-std=gnu11", "-fvisibility=hidden", "-ffp-contract=off", "-fno-math-errno"]
RELEASE_FLAGS = ["-O3", "-g0", "-DNDEBUG"]
if os.environ.get("PYLLAMA_VNNI_IN_AVX2", "0") not in ("", "0"):
    FLAGS += ["-DPL_VNNI_IN_AVX2"]
FLAGS += ["-O0", "-g", "-UNDEBUG"] if DEBUG else RELEASE_FLAGS
# GCC's first scheduling pass keeps more values alive than NEON has registers: it spilled accumulators of the
# products and of attention (tools/count_instructions.py looks for that).
AARCH64_FLAGS = ["-fno-schedule-insns"]
LINK_FLAGS = []
if SANITIZE:
    # -g1: a report needs lines, not variables; following these through the kernels took GCC most of its time, up to its
    # limit. Loops stay rolled: unrolled ones repeat each check, and a check in a loop's condition forbids it, with a
    # warning.
    FLAGS += ["-O1", "-g1", "-DPL_NO_UNROLL"]
    FLAGS += [f"-fsanitize={SANITIZE}", "-fno-omit-frame-pointer", "-fno-sanitize-recover=all"]
    LINK_FLAGS += [f"-fsanitize={SANITIZE}"]
WARNINGS = ["-Wall", "-Wextra", "-Wstrict-prototypes", "-Wvla"] + (["-Werror"] if WERROR else [])
MACROS = [("Py_LIMITED_API", "0x030B0000")] if LIMITED_API else []

OPENMP_PROBE = """
#include <omp.h>
int main(void)
{
    int n = 0;
#pragma omp parallel reduction(+ : n)
    n += omp_get_num_threads();
    return n < 1;
}
"""


class BuildKernels(build_ext):
    """Compiles csrc/ under stricter warnings than Cython's output bears, a file per core, and links both."""

    def build_extension(self, ext):
        sources = sorted(map(str, Path("pyllama/csrc").glob("*.c")))
        target = self.get_ext_fullpath(ext.name)
        if not self.force and not newer_group(ext.sources + ext.depends, target, "newer"):
            return
        openmp = self.supported(["-fopenmp"], OPENMP_PROBE) if OPENMP else []
        flags = FLAGS + (openmp or ["-Wno-unknown-pragmas"])
        if sysconfig.get_platform().endswith("-aarch64"):
            flags += self.supported(AARCH64_FLAGS)
        ext.extra_compile_args = flags
        ext.extra_link_args = LINK_FLAGS + openmp

        def compile_one(source):
            return self.compiler.compile(
                [source],
                output_dir=self.build_temp,
                include_dirs=ext.include_dirs,
                extra_postargs=flags + WARNINGS,
                depends=ext.depends,
            )

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            ext.extra_objects = [obj for objects in pool.map(compile_one, sources) for obj in objects]
        super().build_extension(ext)

    def supported(self, flags, program="int main(void) { return 0; }"):
        """The flags, if this compiler compiles and links a program with them without a warning; else none."""
        strict = ["-Werror", *flags]
        with tempfile.TemporaryDirectory() as folder:
            source, probe = Path(folder, "probe.c"), Path(folder, "probe.so")
            source.write_text(program)
            try:
                objects = self.compiler.compile([str(source)], output_dir=folder, extra_postargs=strict)
                self.compiler.link_shared_object(objects, str(probe), extra_postargs=strict)
            except (CompileError, LinkError):
                print(f"setup.py: this compiler does without {' '.join(flags)}")
                return []
        return flags


kernels = Extension(
    "pyllama._kernels",
    sources=["pyllama/_kernels.pyx"],
    include_dirs=["pyllama/csrc"],
    define_macros=MACROS,
    libraries=["m"],
    depends=sorted(map(str, Path("pyllama/csrc").glob("*.[ch]"))),
    py_limited_api=LIMITED_API,
)


def completions():
    """(folder below the prefix, files) for each shell: made from the command line, so that nothing is kept twice."""
    from pyllama.cli import build_parser
    from pyllama.cli.completion import PLACES, script

    placed = []
    for shell, place in PLACES.items():
        file = Path("build/completions", shell, Path(place).name)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(script(build_parser(), shell), encoding="utf-8")
        placed.append((str(Path(place).parent), [str(file)]))
    return placed


sys.path.insert(0, str(Path(__file__).parent))  # a build frontend leaves it out
setup(
    ext_modules=[kernels],
    data_files=completions(),
    cmdclass={"build_ext": BuildKernels},
    options={"bdist_wheel": {"py_limited_api": "cp311"}} if LIMITED_API else {},
)
