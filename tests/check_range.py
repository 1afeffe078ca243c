"""Loads every family with the lowest versions of diffusers and transformers that pyproject.toml allows.

    python tests/check_range.py [diffusers==0.37.0 transformers==5.1.0 ...]

The versions (default: the lowest of the range) go into an environment of their own, over everything else that this
Python has; then tests/test_bridges_families.py runs there. Needs a package index. Exit status: that of the tests.
"""

from __future__ import annotations

import re
import site
import subprocess
import sys
import tempfile
import tomllib
import venv
from pathlib import Path

ROOT = Path(__file__).parents[1]
LIBRARIES = ("diffusers", "transformers")


def lowest() -> list[str]:
    """The lowest version of each library that the package allows, as pip takes it."""
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    found = [re.match(r"([\w-]+)>=([\d.]+)", line) for line in wanted]
    return [f"{one[1]}=={one[2]}" for one in found if one and one[1] in LIBRARIES]


def main(versions: list[str]) -> int:
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=False, symlinks=True)
        python = str(Path(folder) / "bin" / "python")
        [own] = Path(folder).glob("lib/python*/site-packages")
        # Found after what is installed there, with what those folders themselves point to (an editable install).
        lines = [line for path in site.getsitepackages() for line in (f"import site; site.addsitedir({path!r})",)]
        (own / "below.pth").write_text("\n".join(lines))
        print("installing", *versions, flush=True)
        pip = [sys.executable, "-m", "pip", "--python", python, "install", "-q", *versions]  # and what they need
        subprocess.run(pip, check=True)
        tests = str(ROOT / "tests" / "test_bridges_families.py")
        return subprocess.run([python, "-m", "pytest", "-q", "-p", "no:cacheprovider", tests], cwd=ROOT).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or lowest()))
