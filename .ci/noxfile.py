"""The tests on other processors, thread counts, compilers, versions and in other orders: `make matrix`.

    make matrix                                   # every cell; some minutes each
    make matrix CELLS="aten-default clang"        # these cells
    nox -f .ci/noxfile.py --list

Each cell runs the whole suite, slow tests included. A cell whose Python or compiler is missing is skipped. Its output
goes to .matrix/CELL.txt; it shows the stacks of a test that takes half an hour.
"""

import os
import shutil
from pathlib import Path

import nox

ROOT = Path(__file__).resolve().parents[1]
WORK = ROOT / ".matrix"
OLDEST = ("torch==2.6.*", "torchvision==0.21.*", "numpy==1.24.*", "nltk==3.10.2")  # requirements.txt's lower bounds
PYTEST = ["-m", "slow or not slow", "-n", "auto", "--dist", "loadfile", "-o", "faulthandler_timeout=1800"]
HERE = os.environ.get("PYTHON", "python")  # the Python of the cells without an environment of their own
SETTINGS = {
    "plain": {},
    "aten-default": {"ATEN_CPU_CAPABILITY": "default"},
    "aten-avx2": {"ATEN_CPU_CAPABILITY": "avx2"},
    "mkl-avx2": {"MKL_ENABLE_INSTRUCTIONS": "AVX2"},
    "mkl-compatible": {"MKL_CBWR": "COMPATIBLE"},
    "threads-1": {"OMP_NUM_THREADS": "1"},
    "threads-2": {"OMP_NUM_THREADS": "2"},
    "threads-4": {"OMP_NUM_THREADS": "4"},
    "no-kernel": {"GSMN_NATIVE": "0"},
    "no-compiler": {"CC": "no-such-compiler", "GSMN_CACHE": f"{WORK}/no-compiler-cache"},
    "clang": {"CC": "clang", "GSMN_CACHE": f"{WORK}/clang-cache"},
}
PACKAGES = {
    "oldest": ("3.10", OLDEST),
    "python3.10": ("3.10", ()),
    "python3.12": ("3.12", ()),
    "python3.13": ("3.13", ()),
    "random-order": (None, ("pytest-randomly",)),
}  # cells with an environment of their own

nox.options.envdir = str(WORK / "nox")
nox.options.reuse_existing_virtualenvs = True


def suite(session, cell, python, settings, *tests):
    session.chdir(ROOT)
    WORK.mkdir(exist_ok=True)
    # inductor finds a program of another instruction set in its cache, where ATEN_CPU_CAPABILITY was another
    settings = {"OMP_NUM_THREADS": "1", "TORCHINDUCTOR_CACHE_DIR": f"{WORK}/{cell}-inductor", **settings}
    with open(WORK / f"{cell}.txt", "w") as log:
        session.run(python, "-m", "pytest", *PYTEST, *session.posargs, *tests, env=settings, stdout=log, external=True)
    session.log((WORK / f"{cell}.txt").read_text().splitlines()[-1])


for cell, settings in SETTINGS.items():

    @nox.session(name=cell, venv_backend="none")
    def of_settings(session, cell=cell, settings=settings):
        if cell == "clang" and not shutil.which("clang"):
            session.skip("no clang on the PATH")
        suite(session, cell, HERE, settings)


for cell, (version, packages) in PACKAGES.items():

    @nox.session(name=cell, python=version)
    def of_versions(session, cell=cell, packages=packages):
        session.install("-r", str(ROOT / "tests/requirements.txt"), *packages)
        suite(session, cell, "python", {})


@nox.session(venv_backend="none")
def alone(session):
    """Each file of tests in a process of its own."""
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        suite(session, f"alone-{path.stem}", HERE, {}, str(path))
