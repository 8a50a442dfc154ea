"""python benchmarks/train_speed.py [--csv CSV --images FOLDER] [--sizes small vit-s] [--rounds N] [--output FILE]

Training throughput on this machine, data path included, after `dvc repro` (or on a CSV of your own), in float32:

    ours          Trainer.train_round over the pixel cache, default params, images augmented
    open_clip     open_clip_train's CSV data set, preprocessing and train_one_epoch with SigLipLoss
    Hugging Face  SiglipModel and transformers.Trainer; Pillow and the library's own image processor
    frozen        ours with train.freeze.vision: all, its features cached

Towers of the same sizes, the same pairs, tokens and batches, one epoch each in turn, ratios within a turn, their
median. Then the same with all texts made distinct: ours encodes equal texts of a batch once, the peers do not.
`small`: all training pairs in batches of 64; `vit-s`: 64 pairs in batches of 16. Peers: pip install -e '.[bench]'.

An epoch on cached features costs the text tower on a batch's distinct texts, so what freezing gains depends on the
batch and on the image's size. It has its target where one freezes: `small` in batches of 1,024, as locked-image tuning
trains, and `vit-s` at RAD-DINO's 518 px; the figures of the runs above are printed beside.

Prints target beside figure; exits 1 when one is missed.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

from claims import Claim, conclude
from contenders import Contender
from peer_ways import HuggingFaceWay, OpenClipWay
from sizes import SMALL, VIT_S, Sizes
from training_ways import Epoch, Kind, Ours, Way, Work

from knee_siglip.cli.train import CACHE_FACTS, MANIFEST, prepare
from knee_siglip.core import paths
from knee_siglip.core.errors import UserError
from knee_siglip.core.running import run_stage
from knee_siglip.params.sections import DataParams, Params
from knee_siglip.store.pixels import read_cache_facts

OURS, OPEN_CLIP, HUGGING_FACE, FROZEN = "ours", "open_clip", "Hugging Face", "frozen"
WAYS: dict[str, Callable[[Work], Way]] = {
    OURS: Ours,
    OPEN_CLIP: OpenClipWay,
    HUGGING_FACE: HuggingFaceWay,
    FROZEN: partial(Ours, frozen=True),
}


@dataclass(frozen=True)
class Amount:
    """Towers, pairs of an epoch (None: all there are) and pairs of a batch."""

    sizes: Sizes
    pairs: int | None
    batch_size: int


SIZES = {SMALL.name: Amount(SMALL, None, 64), VIT_S.name: Amount(VIT_S, 64, 16)}
WHERE_ONE_FREEZES = {
    SMALL.name: Amount(SMALL, None, 1024),
    VIT_S.name: Amount(replace(VIT_S, image_size=518), 16, 16),
}

MORE_PARAMETERS = {OPEN_CLIP: 0.02, HUGGING_FACE: 0.06}
"""That a peer may have more or less. SiglipModel pools the image by a block of its own, which ours does not have."""

PEERS = MORE_PARAMETERS.keys()

BUSY = 0.5
"""Load average. On two cores one more busy thread slows torch's own by several times: they wait for each other."""

Rounds = list[dict[str, Epoch]]


def measure(
    amount: Amount, manifest: Path, cache_facts: Path, ways: Sequence[str], kinds: Sequence[Kind], count: int
) -> tuple[dict[str, Any], dict[Kind, Rounds]]:
    """What the contenders say of themselves, and `count` rounds with each kind of texts."""
    work = Work(amount.sizes, manifest, cache_facts, amount.pairs, amount.batch_size)
    told = f"{amount.sizes.name}, {amount.sizes.image_size} px, batches of {amount.batch_size}"
    rounds: dict[Kind, Rounds] = {kind: [] for kind in kinds}
    with ExitStack() as stack:
        contenders = []
        for name in ways:
            contender = Contender(name, partial(WAYS[name], work))
            stack.callback(contender.close)
            print(f"{told}, {name}: {contender.facts}", flush=True)
            contenders.append(contender)
        for kind, done in rounds.items():
            for number in range(count):
                done.append({contender.name: contender.epoch(kind) for contender in contenders})
                print(f"{told}, {kind} texts, round {number + 1}: {shown(done[-1])}", flush=True)
        return {contender.name: contender.facts for contender in contenders}, rounds


def shown(epochs: dict[str, Epoch]) -> str:
    """pairs/s of one round."""
    return ", ".join(f"{name} {epoch.pairs / epoch.seconds:.1f}" for name, epoch in epochs.items()) + " pairs/s"


def times_faster(rounds: Rounds, fast: str, slow: str) -> float:
    """Median over the rounds of the ratio within a round."""
    return median(epochs[slow].seconds / epochs[fast].seconds for epochs in rounds)


def figures_of(rounds: Rounds) -> dict[str, Any]:
    """Medians of each contender, and the ratios."""
    of_name = {name: [epochs[name] for epochs in rounds] for name in rounds[0]}
    figures: dict[str, Any] = {
        name: {
            "pairs_per_second": median(epoch.pairs / epoch.seconds for epoch in epochs),
            "seconds": [epoch.seconds for epoch in epochs],
            "peak_memory_mb": epochs[-1].peak_mb,
        }
        for name, epochs in of_name.items()
    }
    for name in (OURS, FROZEN):
        shares = [(epoch.waited or 0.0) / epoch.seconds for epoch in of_name[name]]
        figures[name]["data_wait_share"] = median(shares)
    for peer in PEERS & of_name.keys():
        figures[f"ours / {peer}"] = times_faster(rounds, OURS, peer)
    return figures | {"frozen / ours": times_faster(rounds, FROZEN, OURS)}


def claims_of(size: str, given: dict[str, Any], facts: dict[str, Any], freezing: dict[str, Any]) -> list[Claim]:
    """Only the texts as they are have a target."""
    ours = facts[OURS]["parameters"]
    amount = WHERE_ONE_FREEZES[size]
    frozen = f"{size}, {amount.sizes.image_size} px, batches of {amount.batch_size}"
    return [
        *(
            Claim(f"{size}: {peer}'s parameters beside ours", abs(facts[peer]["parameters"] / ours - 1), "<=", most)
            for peer, most in MORE_PARAMETERS.items()
        ),
        Claim(f"{size}: pairs/s of ours / open_clip's", given[f"ours / {OPEN_CLIP}"], ">=", 1, "times"),
        Claim(f"{size}: pairs/s of ours / Hugging Face's", given[f"ours / {HUGGING_FACE}"], ">=", 1, "times"),
        Claim(f"{frozen}: epochs/hour frozen / unfrozen", freezing["frozen / ours"], ">=", 20, "times"),
    ]


@contextmanager
def prepared(csv: Path | None, images: Path | None) -> Iterator[tuple[Path, Path]]:
    """The manifest and the cache's facts: of the pipeline here, or of a CSV that is prepared in a temporary folder."""
    if csv is None:
        os.environ["KNEE_SIGLIP_STORE"] = str(paths.store_root())
        yield paths.MANIFEST, paths.CACHE_FACTS
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["KNEE_SIGLIP_STORE"] = str(folder / "store")
        prepare(Params(data=DataParams(csv=str(csv), images=str(images or csv.parent))), folder)
        yield folder / MANIFEST, folder / CACHE_FACTS


def measure_all(sizes: Sequence[str], csv: Path | None, images: Path | None, rounds: int) -> tuple[list[Claim], Any]:
    """Claims and facts of all sizes."""
    claims: list[Claim] = []
    facts: dict[str, Any] = {}
    with prepared(csv, images) as (manifest, cache_facts):
        cached, needed = read_cache_facts(cache_facts)["image_size"], SMALL.image_size
        if cached != needed:
            raise UserError(f"the cache holds images of {cached} px, not of {needed}: dvc repro with that")
        for size in sizes:
            own, found = measure(SIZES[size], manifest, cache_facts, list(WAYS), ("given", "distinct"), rounds)
            figures = {f"{kind}_texts": figures_of(done) for kind, done in found.items()}
            _, found = measure(WHERE_ONE_FREEZES[size], manifest, cache_facts, (OURS, FROZEN), ("given",), rounds)
            facts[size] = {"contenders": own, "where_one_freezes": figures_of(found["given"]), **figures}
            print(
                f"{size}: frozen / unfrozen here {figures['given_texts']['frozen / ours']:.1f} times, without a target"
            )
            claims += claims_of(size, figures["given_texts"], own, facts[size]["where_one_freezes"])
    return claims, facts


def main() -> None:
    """Measure and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--csv", type=Path, help="with img_path, impression, split; default: the pipeline's manifest")
    parser.add_argument("--images", type=Path, help="folder of its images; default: the CSV's")
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), choices=list(SIZES))
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    args = parser.parse_args()
    absent = [name for name in ("open_clip", "webdataset", "accelerate") if find_spec(name) is None]
    if absent:
        sys.exit(f"not installed: {', '.join(absent)}; pip install -e '.[bench]'")
    load = os.getloadavg()[0]
    if load > BUSY:
        print(f"other work runs on this machine (load {load:.1f}): the figures will not hold")
    claims, facts = measure_all(args.sizes, args.csv, args.images, args.rounds)
    facts["load_before"] = load
    conclude(claims, facts, args.output, "torch", "transformers", "open_clip_torch", "accelerate")


if __name__ == "__main__":
    run_stage(main)
