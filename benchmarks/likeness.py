"""python benchmarks/likeness.py [--others hip=FOLDER]... [--independent hip=FOLDER]... [--knees film=FOLDER]...

Which images does a trained model (`--model`) call unlike those it was trained on? Its own held-out knees (`--csv` with
img_path and split, by default the sample's; the rows of the test split) must pass, each folder of other images must be
flagged. `--others`: images at which measure and limit were chosen; `--independent`: images never looked at before;
`--knees`: knees of another source, of which the share flagged is told without a target.

The project ships no radiograph of a patient. The figures in likeness.json (default model) and likeness_real.json (a
model trained on 1,548 real knees) come from images that lie in public repositories on GitHub. The limit was chosen at:
chests of muhammedtalo/COVID-19; four pelves of AbdulHafeez2004/pelvic-classification-with-xrays, and the eight hips
cropped from them, and, since 2026-11-27, at one half of those below (named first-half-...), the even sha256 of their
names (both sides of a patient together); the other half is independent. Without copies of one picture and of those
above, each contact sheet looked at:
- chest: agchung/Figure1-COVID-chestxray-dataset@95bb569, mlmed/torchxrayvision@f4087a0 (tests, scripts)
- pelvis: of children, radoss-org/radoss-creative-commons@185aed2 (other/xray); of adults,
  rayyirahmaid/Computer-Aided-Diagnosis-for-Femur-Proximal-Fracture-Detection@1ee7667
- hip, ankle: either side of the top and bottom fifth of 48 whole-leg films, Baimon664/Hip_Knee_Ankle@336675a (dev)
- hand: every eighth of ajayduraisamy/Bone-detection-using-x-ray-images@54d1061 (bone age)
- limb (mostly arms) and lower-leg: kosratdev/fracture-detection@1896122 (ml_roboflow, one per number; ml_eeeh), without
  five that show a knee
- spine: AdamSkog/Scoliosis-Xray-Classification@a5b5b29
- dog (abdomen and pelvis): Arianafshar2003/hip-dysplasia-detection@ce02ecf
- other (skull, foot, abdomen, whole body; some chests and pelves went above): demo images of
  asonnellini/Anatomical-stages-radiography-detection@2dfcc41, DaryllRicalde/Image-Enhancement-Research@c645cd8,
  muthuraman888/Single-Image-Super-Resolution-on-Medical-Images@c41bd67, manhph2211/Bone-Fracture-Detection@52c29c2
Knees: the middle of those whole-leg films (film; eight with a prosthesis), eight pictures of
IshaanShettigar/classification-of-osteoporosis@7faa6ce and one of kosratdev's (mixed; six with a drawn box).

Prints target beside figure; exits 1 when one is missed.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from claims import Claim, conclude
from scipy.stats import binomtest

from knee_siglip.core import paths
from knee_siglip.core.errors import UsageError
from knee_siglip.core.files import files_below
from knee_siglip.core.running import run_stage
from knee_siglip.imaging.decode.read import ImageError
from knee_siglip.imaging.fit.transform import load_pixels
from knee_siglip.inference.predictor import Predictor
from knee_siglip.params.sections import DataParams
from knee_siglip.tables.table import read_table

AT_ONCE = 64
MOST = 500
"""Images of each kind, drawn by a fixed seed."""

GROUPS = {"others": "", "independent": "independent ", "knees": "knees of another source, "}
"""Options that take folders, and how the names of their kinds begin in the results."""


def held_out(csv: Path) -> list[Path]:
    """The files of the test split."""
    table = read_table(csv)
    return [csv.parent / name for name in table.loc[table["split"] == "test", "img_path"]]


def distances(predictor: Predictor, files: list[Path]) -> np.ndarray:
    """(N,) distances of those that can be read."""
    chosen = np.random.default_rng(0).permutation(np.array(files, dtype=object))[:MOST]
    pixels = []
    for file in chosen:
        try:
            pixels.append(load_pixels(file, predictor.transform))
        except ImageError as error:
            print(f"left out: {error}")
    embeds = [predictor.embed_images(np.stack(pixels[at : at + AT_ONCE])) for at in range(0, len(pixels), AT_ONCE)]
    return predictor.distances(np.concatenate(embeds))


def summary(found: np.ndarray) -> dict[str, Any]:
    """Images, share that is flagged with its interval, and quantiles of the distance."""
    between = binomtest(int((found > 1).sum()), len(found)).proportion_ci(method="wilson")
    quantiles = {f"{100 * q:g} %": round(float(np.quantile(found, q)), 3) for q in (0.01, 0.05, 0.5, 0.95, 0.99)}
    shares = {
        "flagged": float((found > 1).mean()),
        "from": round(float(between.low), 4),
        "to": round(float(between.high), 4),
    }
    return {"images": len(found), **shares, "distance": quantiles}


def main() -> None:
    """Measure every kind of image."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=paths.BEST_MODEL)
    parser.add_argument("--csv", type=Path, default=Path(DataParams().csv))
    for group in GROUPS:
        parser.add_argument(f"--{group}", action="append", default=[], metavar="KIND=FOLDER")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    args = parser.parse_args()
    predictor = Predictor(args.model)
    if predictor.checkpoint.likeness is None:
        raise UsageError(f"{args.model} has no limit of likeness: train it with this version")
    facts: dict[str, Any] = {"held-out knees": summary(distances(predictor, held_out(args.csv)))}
    noise = np.random.default_rng(0).integers(0, 256, (64, *2 * [predictor.transform.image_size]), dtype=np.uint8)
    facts["noise"] = summary(predictor.distances(predictor.embed_images(noise)))
    for group, prefix in GROUPS.items():
        for given in getattr(args, group):
            kind, _, folder = given.partition("=")
            facts[prefix + kind] = summary(distances(predictor, list(files_below(Path(folder)))))
    for kind, found in facts.items():
        print(f"{kind}: {found}")
    claims = [Claim("held-out knees flagged", facts["held-out knees"]["flagged"], "<=", 0.05)]
    others = [kind for kind in facts if kind != "held-out knees" and not kind.startswith(GROUPS["knees"])]
    claims += [Claim(f"{kind} flagged", facts[kind]["flagged"], ">=", 0.95) for kind in others]
    trained = predictor.checkpoint.facts
    facts["model"] = (
        {} if trained is None else trained.model_dump(include={"rows", "drawn_rows", "patients", "verdict"})
    )
    conclude(claims, facts, args.output, "torch")


if __name__ == "__main__":
    run_stage(main)
