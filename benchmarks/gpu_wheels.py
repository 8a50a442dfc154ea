"""python benchmarks/gpu_wheels.py [--output FOLDER]

With a network: collects into build/gpu-wheels the wheels (19 MB) that `gpu_all.py` needs beside what a GPU machine with
Python 3.12, torch, torchvision, timm and a scientific stack has. There, `gpu_all.py` puts them on its path by itself.
"""

import argparse
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "build" / "gpu-wheels"
LOCKED = (
    "annotated-types",
    "isal",
    "kornia_rs",
    "platformdirs",
    "pydantic",
    "pydantic_core",
    "transformers",
    "typing-inspection",
    "typing_extensions",
    "wcwidth",
)
"""In the versions of requirements.lock. wcwidth is ftfy's."""
THERE = {
    "numpy",
    "pandas",
    "pillow",
    "regex",
    "rich",
    "safetensors",
    "scipy",
    "sentencepiece",
    "threadpoolctl",
    "torch",
}
"""What else the phases import, which a machine with torch and a scientific stack has."""
PEER = ("ftfy==6.3.1", "open_clip_torch==3.3.0")
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")


def requirements(lock: str) -> list[str]:
    """`name==version` of all wheels; lock: text of requirements.lock."""
    versions = dict(re.findall(r"^([\w.-]+)==(\S+)$", lock, re.MULTILINE))
    return [f"{name}=={versions[name]}" for name in LOCKED] + list(PEER)


def collect(folder: Path) -> None:
    """Download the wheels for CPython 3.12 on x86-64 Linux, whatever this machine is."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.whl"):
        old.unlink()
    target = ["--only-binary=:all:", "--no-deps", "--implementation", "cp", "--python-version", "3.12"]
    target += [part for name in PLATFORMS for part in ("--platform", name)]
    wanted = requirements((ROOT / "requirements.lock").read_text(encoding="utf-8"))
    subprocess.run([sys.executable, "-m", "pip", "download", "-q", *target, "-d", str(folder), *wanted], check=True)


def use_wheels(folder: Path) -> tempfile.TemporaryDirectory[str] | None:
    """Unpack the wheels into a temporary folder at the head of `sys.path`; it lasts as long as the returned object.

    None where there are no wheels, or where they were built for another Python than this one.
    """
    wheels = sorted(folder.glob("*.whl"))
    if not wheels or sys.version_info[:2] != (3, 12):
        return None
    unpacked = tempfile.TemporaryDirectory(prefix="gpu-wheels-")
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(unpacked.name)
    sys.path.insert(0, unpacked.name)
    return unpacked


def main() -> None:
    """Collect, and say what lies there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=FOLDER)
    folder = parser.parse_args().output
    collect(folder)
    sizes = {wheel.name: wheel.stat().st_size for wheel in sorted(folder.glob("*.whl"))}
    print(*sizes, sep="\n")
    print(f"{len(sizes)} wheels, {sum(sizes.values()) / 1e6:.1f} MB in {folder}")


if __name__ == "__main__":
    main()
