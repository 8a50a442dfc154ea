"""python benchmarks/hostile_files.py [--output FILE] [--list]

Every odd, damaged and hostile picture and DICOM of tests/torture, read by this project, MONAI, torchxrayvision and
open_clip: by these packages where they are installed, else by their own lines on Pillow and pydicom. The outcomes are
right, refused, crash, or wrong in silence.

`right`: the expected greys follow from what was read by some rising curve, and rows and columns are where they belong.
`crash`: the process died, filled 4 GB, or took more than 20 s of the processor. What should be refused and is read is
wrong in silence.
Prints target beside figure; exits 1 when one is missed.
"""

import argparse
import faulthandler
import importlib
import os
import resource
import signal
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pydicom
import torch
from claims import Claim, conclude
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "torture"))

import test_hostile_dicoms as dicoms
import test_hostile_images as pictures

from knee_siglip.imaging.decode.read import read_grey

RIGHT, REFUSED, CRASH, WRONG = "right", "refused", "crash", "wrong in silence"
OUTCOMES = (RIGHT, REFUSED, CRASH, WRONG)
SECONDS, MEMORY = 20, 4 * 2**30
SLACK = 12
"""Greys of 255 by which a right reading may differ: rounding and lossy coding, not another picture."""

Reader = Callable[[Path], np.ndarray]


@dataclass(frozen=True)
class Case:
    """A file's name and bytes; expected: its grey, None where it has to be refused."""

    kind: str
    name: str
    make: Callable[[], bytes]
    expected: np.ndarray | None


def monai(path: Path) -> np.ndarray:
    """LoadImage's PILReader or PydicomReader, EnsureChannelFirst, ScaleIntensity (monai/data/image_reader.py, 1.5)."""
    if _is_dicom(path):
        dataset = pydicom.dcmread(path)
        array = dataset.pixel_array
        slope, offset = dataset.get("RescaleSlope", 1.0), dataset.get("RescaleIntercept", 0.0)
        array = array.astype(np.float32) * float(slope) + float(offset)
    else:
        with Image.open(path) as image:
            array = np.asarray(image).astype(np.float32)
    array = array.mean(axis=-1) if array.ndim == 3 else array
    low, high = array.min(), array.max()
    return (array - low) / (high - low) * 255 if high > low else array - low


def torchxrayvision(path: Path) -> np.ndarray:
    """xrv.utils.read_xray_dcm, and load_image with skimage's imread, which is Pillow's (utils.py of 1.3)."""
    if _is_dicom(path):
        dataset = pydicom.dcmread(path)
        data = dataset.pixel_array
        if dataset.PhotometricInterpretation == "MONOCHROME1":
            data = np.amax(data) - data
        data = data - np.min(data)
        return (data / np.max(data) * 255).astype(np.uint8)
    with Image.open(path) as image:
        array = np.array(image)
    largest = 255
    if array.max() > largest:
        raise ValueError("max image value higher than expected bound")  # xrv.datasets.normalize
    return array[:, :, 0] if array.ndim > 2 else array


def open_clip(path: Path) -> np.ndarray:
    """Image.open and convert("RGB") of its transforms (open_clip/transform.py, 3.3); DICOM by pydicom's pixel_array."""
    image = Image.fromarray(pydicom.dcmread(path).pixel_array) if _is_dicom(path) else Image.open(path)
    return np.asarray(image.convert("RGB"))[:, :, 0]


def installed_monai(path: Path) -> np.ndarray:
    """LoadImage by the suffix's reader, which turns columns to rows."""
    from monai.transforms import LoadImage, ScaleIntensity

    reader = "PydicomReader" if _is_dicom(path) else "PILReader"
    array = np.asarray(LoadImage(reader=reader, image_only=True)(path), dtype=np.float32)
    array = array.mean(axis=-1) if array.ndim == 3 else array
    return np.asarray(ScaleIntensity()(array)).T * 255


def installed_torchxrayvision(path: Path) -> np.ndarray:
    """Its load_image, which knows a DICOM by its first bytes; read_xray_dcm where the caller has to know."""
    from torchxrayvision.utils import load_image, read_xray_dcm

    array = read_xray_dcm(path) if _is_dicom(path) else load_image(str(path))[0]
    return (np.asarray(array) + 1024) / 2048 * 255


def installed_open_clip(path: Path) -> np.ndarray:
    """Its transform to the image's own size, without another mean; DICOM by pydicom's pixel_array."""
    from open_clip.transform import image_transform

    image = Image.fromarray(pydicom.dcmread(path).pixel_array) if _is_dicom(path) else Image.open(path)
    size = image.height, image.width
    transform = image_transform(size, is_train=False, mean=(0, 0, 0), std=(1, 1, 1), resize_mode="squash")
    return np.asarray(transform(image))[0] * 255


INSTALLED: dict[str, tuple[str, str, Reader, Reader]] = {
    "MONAI": ("monai", "monai.transforms", installed_monai, monai),
    "torchxrayvision": ("torchxrayvision", "torchxrayvision.utils", installed_torchxrayvision, torchxrayvision),
    "open_clip": ("open_clip_torch", "open_clip.transform", installed_open_clip, open_clip),
}
"""Package, the module that is used, and what reads with it or, where it is not installed, its lines."""


def readers() -> dict[str, Reader]:
    """By their names, with the versions of those that are installed."""
    found: dict[str, Reader] = {"knee-siglip": read_grey}
    for name, (package, module, installed, written) in INSTALLED.items():
        try:
            # torchvision's wheel for CUDA has no operators to describe on other machines; nobody calls one here
            with patch.object(torch.library, "register_fake", lambda *_, **__: lambda function: function):
                importlib.import_module(module)
            found[f"{name} {version(package)}"] = installed
        except Exception as error:
            print(f"{name}: its own lines written out, since it cannot be imported ({str(error)[:80]})")
            found[f"{name}'s lines"] = written
    return found


def cases() -> Iterator[Case]:
    """All that the tests hold; those whose expectation is no array are left out."""
    for kind, module in (("picture", pictures), ("DICOM", dicoms)):
        for name, (make, expected, _) in module.READ.items():
            if expected is not None:
                yield Case(kind, name, make, np.asarray(expected))
        for name, (make, _) in module.REFUSED.items():
            yield Case(kind, name, make, None)


def outcome(reader: Reader, path: Path, expected: np.ndarray | None) -> str:
    """In a process of its own, with limits on memory and time."""
    child = os.fork()
    if child == 0:
        os._exit(_judged(reader, path, expected))
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    return OUTCOMES[code] if 0 <= code < len(OUTCOMES) else CRASH


def is_right(found: np.ndarray, expected: np.ndarray) -> bool:
    """Whether `expected` (H, W) follows from `found` by some rising curve, but for `SLACK` greys."""
    if found.shape != expected.shape or not np.isfinite(found).all():
        return False
    order = np.argsort(found, axis=None, kind="stable")
    values, greys = found.ravel()[order], expected.ravel()[order].astype(float)
    starts = np.flatnonzero(np.r_[True, np.diff(values) > 0])
    low, high = np.minimum.reduceat(greys, starts), np.maximum.reduceat(greys, starts)
    before = np.maximum.accumulate(np.r_[-np.inf, high[:-1]])  # the lightest grey among darker values
    return bool((high - low <= 2 * SLACK).all() and (before - low <= 2 * SLACK).all())


def _judged(reader: Reader, path: Path, expected: np.ndarray | None) -> int:
    """The number of the outcome, as an exit code."""
    faulthandler.disable()
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    signal.alarm(10 * SECONDS)  # one that waits
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    warnings.simplefilter("ignore")
    try:
        found = reader(path)
    except MemoryError:
        return OUTCOMES.index(CRASH)
    except Exception:
        return OUTCOMES.index(REFUSED)
    return OUTCOMES.index(RIGHT if expected is not None and is_right(found, expected) else WRONG)


def _is_dicom(path: Path) -> bool:
    """MONAI and users of the others choose by the suffix; the test's files without a name of a picture are DICOMs."""
    return path.suffix in (".dcm", ".img")


def main() -> None:
    """Read everything by everybody."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="print each case that somebody reads wrong or crashes on")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    args = parser.parse_args()
    compared = readers()
    found: dict[str, dict[str, Counter[str]]] = {name: {} for name in compared}
    with tempfile.TemporaryDirectory() as folder:
        for case in cases():
            path = Path(folder) / (f"{case.name}.img" if case.kind == "DICOM" else case.name)
            path.write_bytes(case.make())
            answers = {name: outcome(reader, path, case.expected) for name, reader in compared.items()}
            path.unlink()
            for name, answer in answers.items():
                found[name].setdefault(case.kind, Counter())[answer] += 1
            if args.list and {WRONG, CRASH} & set(answers.values()):
                print(f"{case.kind} {case.name!a}: {answers}")
    _show(found)
    claims = [
        Claim(f"{kind}s: wrong in silence or crash, knee-siglip", counts[WRONG] + counts[CRASH], "<=", 0, "files")
        for kind, counts in found["knee-siglip"].items()
    ]
    facts = {name: {kind: dict(counts) for kind, counts in kinds.items()} for name, kinds in found.items()}
    conclude(claims, {"read": facts}, args.output, "pillow", "pydicom", "numpy")


def _show(found: dict[str, dict[str, Counter[str]]]) -> None:
    print("| reader | files | " + " | ".join(OUTCOMES) + " |\n|---|---|" + "---|" * len(OUTCOMES))
    for name, kinds in found.items():
        for kind, counts in kinds.items():
            print(f"| {name} | {counts.total()} {kind}s | " + " | ".join(str(counts[o]) for o in OUTCOMES) + " |")


if __name__ == "__main__":
    main()
