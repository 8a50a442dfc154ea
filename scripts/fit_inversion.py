"""PYTHONPATH=benchmarks python scripts/fit_inversion.py --csv <knee-xrays>/train.csv [--sample data/sample/train.csv]

Fit the weights of knee_siglip.imaging.decode.inversion: images of the training patients of both sets and their
inverted copies, every one with every disturbance of benchmarks/disturbances.py. Prints the weights to put into the
code. They are a logistic regression without constant, fitted to every image and to its mirror image in feature space
as well.
"""

import argparse
from collections.abc import Iterator
from multiprocessing import Pool
from pathlib import Path

import numpy as np
import pandas as pd
from disturbances import DISTURBANCES
from sklearn.linear_model import LogisticRegression

from knee_siglip.imaging.decode.inversion import features
from knee_siglip.imaging.decode.read import read_grey

LABELS = Path(__file__).parents[1] / "benchmarks" / "inverted_knees.csv"
EVERY = 6
"""Of the training images, every how manieth is used: three thousand examples per weight are plenty."""


def training_images(csv: Path) -> list[Path]:
    """The normal images of the CSV's training split, thinned out, in the order of their names."""
    table = pd.read_csv(csv, dtype=str)
    inverted = set(pd.read_csv(LABELS).query("inverted == 1").img_path)
    names = sorted(set(table.loc[table.split == "train", "img_path"]) - inverted)
    return [csv.parent / name for name in names[::EVERY]]


def examples(path: Path) -> list[tuple[np.ndarray, int]]:
    """Features and label of the image and its inverted copy, under every disturbance."""
    return list(_examples(read_grey(path)))


def _examples(grey: np.ndarray) -> Iterator[tuple[np.ndarray, int]]:
    for label, image in ((0, grey), (1, 255 - grey)):
        for number, disturb in enumerate(DISTURBANCES.values()):
            yield features(disturb(image, np.random.default_rng(number))), label


def fit(values: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """values: (N, F); labels: (N,), 1 = inverted. Returns the weights (F,)."""
    scale = values.std(axis=0)
    symmetric = np.concatenate([values, -values]) / scale
    model = LogisticRegression(fit_intercept=False).fit(symmetric, np.concatenate([labels, 1 - labels]))
    return np.asarray(model.coef_[0] / scale)


def main() -> None:
    """Fit and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--csv", type=Path, required=True, help="CSV of the real radiographs")
    parser.add_argument("--sample", type=Path, default=Path("data/sample/train.csv"), help="CSV of the drawn sample")
    args = parser.parse_args()
    paths = training_images(args.csv) + training_images(args.sample)
    with Pool() as pool:
        found = [example for each in pool.imap(examples, paths, 8) for example in each]
    values, labels = np.array([value for value, _ in found]), np.array([label for _, label in found])
    print(f"{len(paths)} images, {len(labels)} examples")
    print("WEIGHTS =", tuple(float(weight) for weight in fit(values, labels).round(2)))


if __name__ == "__main__":
    main()
