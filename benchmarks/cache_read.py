"""python benchmarks/cache_read.py [--csv FILE] [--images N] [--repeats N] [--output FILE]

One epoch's pixels at 224 px in shuffled batches of 64, the least of alternating repeats, on all cores:

    cache        this project's store, as uint8 grey and as normalised float32 (B, 3, 224, 224)
    reference    the usual way: PIL open, Lanczos resize, Hugging Face image processor, one DataLoader worker per core
    MONAI        PersistentDataset with our transform, second epoch, one DataLoader worker per core; pip install monai

Prints target beside figure; exits 1 when one is missed.
"""

import argparse
import hashlib
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from claims import Claim, conclude
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from knee_siglip.core.threads import available_cores
from knee_siglip.imaging.fit.transform import Transform, load_pixels
from knee_siglip.pairs.batches import epoch_order, normalise, split_groups
from knee_siglip.store.pixels import CachedPixels, PixelStore

SIZE = 224
BATCH = 64
TRANSFORM = Transform(SIZE, "pad", "local")
MEAN, STD = [0.5307] * 3, [0.2583] * 3
"""RAD-DINO's."""

Epoch = Callable[[int], Iterator[torch.Tensor]]


class ReferenceDataset(Dataset[torch.Tensor]):
    """Decodes in every epoch. The processor neither resizes nor crops again what is 224 px already."""

    def __init__(self, files: Sequence[Path]) -> None:
        from transformers import BitImageProcessor

        self.files = files
        self.processor: Any = BitImageProcessor(
            do_resize=False, do_center_crop=False, do_convert_rgb=False, image_mean=MEAN, image_std=STD
        )

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> torch.Tensor:
        """float32 (3, S, S)."""
        with Image.open(self.files[index]) as image:
            square = image.convert("RGB").resize((SIZE, SIZE), Image.Resampling.LANCZOS)
        pixels: torch.Tensor = self.processor(images=square, return_tensors="pt")["pixel_values"][0]
        return pixels


def normalised(batches: Iterator[torch.Tensor]) -> Iterator[torch.Tensor]:
    """(B, S, S) uint8 to float32 (B, 3, S, S) by mean and std, into one buffer: fresh memory for every batch would cost
    several times as much as the numbers in it. A batch holds until the next one is asked for."""
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    buffer = torch.empty(BATCH, 3, SIZE, SIZE)
    for grey in batches:
        yield normalise(grey, mean, std, out=buffer)


def cache_epochs(files: Sequence[Path], folder: Path) -> dict[str, Epoch]:
    """Build the store, then read it."""
    ids = [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
    store = PixelStore(folder, TRANSFORM)
    store.ensure(ids, files)
    pixels = CachedPixels(store, ids)

    def grey(epoch: int) -> Iterator[torch.Tensor]:
        for rows in split_groups(epoch_order(len(pixels), 0, epoch), BATCH):
            yield torch.from_numpy(pixels[rows])

    return {"cache uint8": grey, "cache float32": lambda epoch: normalised(grey(epoch))}


def reference_epochs(files: Sequence[Path]) -> dict[str, Epoch]:
    """The usual way."""
    return {"reference float32": lambda epoch: loaded(ReferenceDataset(files), epoch)}


def monai_epochs(files: Sequence[Path], folder: Path) -> dict[str, Epoch]:
    """Nothing where MONAI is not installed. Its first epoch, which fills its cache, is not measured."""
    try:
        from monai.data import PersistentDataset
        from monai.transforms import Transform as MonaiTransform
    except ImportError:
        print("MONAI is not installed (pip install monai): its targets are not measured")
        return {}

    class Read(MonaiTransform):  # MONAI caches what its own class does, and takes any other function for a random one
        def __call__(self, name: str) -> torch.Tensor:
            """uint8 (S, S)."""
            return torch.from_numpy(load_pixels(Path(name), TRANSFORM))

    dataset = PersistentDataset([str(file) for file in files], [Read()], cache_dir=folder)
    for _ in loaded(dataset, 0):
        pass
    assert len(list(folder.glob("*.pt"))) == len(files), "MONAI has cached nothing: the comparison would be void"
    return {
        "MONAI uint8": lambda epoch: loaded(dataset, epoch),
        "MONAI float32": lambda epoch: normalised(loaded(dataset, epoch)),
    }


def loaded(dataset: Any, epoch: int) -> Iterator[torch.Tensor]:
    """Batches in the same order as the cache's."""
    order = epoch_order(len(dataset), 0, epoch)
    batches = [group.tolist() for group in split_groups(order, BATCH)]
    yield from DataLoader(dataset, batch_sampler=batches, num_workers=available_cores())


def seconds_of(epoch: Iterator[torch.Tensor], expected: int) -> float:
    """Time of one epoch whose batches are looked at only in so far as all pixels must be there."""
    started = time.perf_counter()
    count = 0
    for batch in epoch:
        assert batch.is_contiguous()
        count += len(batch)
    assert count == expected
    return time.perf_counter() - started


def measure(ways: dict[str, Epoch], images: int, repeats: int) -> dict[str, float]:
    """Images per second."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for repeat in range(repeats):
        for name, way in ways.items():
            seconds[name].append(seconds_of(way(repeat), images))
    return {name: images / min(found) for name, found in seconds.items()}


def claims_of(rates: dict[str, float]) -> list[Claim]:
    """Each of the cache's two forms against the peers in the same form."""
    slow = rates["reference float32"]
    claims = [
        Claim("float32 from the cache / reference", rates["cache float32"] / slow, ">=", 20, "times"),
        Claim("uint8 from the cache / reference", rates["cache uint8"] / slow, ">=", 50, "times"),
    ]
    if "MONAI uint8" in rates:
        for form in ("uint8", "float32"):
            figure = rates[f"cache {form}"] / rates[f"MONAI {form}"]
            claims.append(Claim(f"{form} from the cache / MONAI PersistentDataset", figure, ">=", 5, "times"))
    return claims


def main() -> None:
    """Measure and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--csv", type=Path, default=Path("data/sample/train.csv"), help="names 512 px PNGs")
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    args = parser.parse_args()
    files = [args.csv.parent / name for name in pd.read_csv(args.csv)["img_path"].head(args.images)]
    with tempfile.TemporaryDirectory() as folder:
        ways = cache_epochs(files, Path(folder) / "store") | reference_epochs(files)
        ways |= monai_epochs(files, Path(folder) / "monai")
        rates = measure(ways, len(files), args.repeats)
    for name, rate in rates.items():
        print(f"{name}: {rate:.0f} images/s")
    facts = {"images": len(files), "batch_size": BATCH, "torch_threads": torch.get_num_threads()}
    conclude(claims_of(rates), facts | {"images_per_second": rates}, args.output, "numpy", "pillow", "torch")


if __name__ == "__main__":
    main()
