"""A 16x16 thumbnail must not give the KL grade away: what a shortcut learner could reach without looking at the joint.

    python benchmarks/sample_shortcut.py [folder of a sample]

Logistic regression on thumbnails of the training split, tested on val and test, by view; target: quadratic-weighted
kappa < 0.5. Exits 1 when the target is missed.
"""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import cohen_kappa_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

TARGET_KAPPA = 0.5
THUMBNAIL = 16


def thumbnails(folder: Path, img_paths: pd.Series) -> np.ndarray:
    """Grey thumbnails (N, THUMBNAIL * THUMBNAIL), float32, each with zero mean and unit variance."""
    pixels = []
    for img_path in img_paths:
        with Image.open(folder / img_path) as image:
            small = image.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX, reducing_gap=2.0)
        pixels.append(np.asarray(small, dtype=np.float32).ravel())
    stacked = np.stack(pixels)
    return (stacked - stacked.mean(axis=1, keepdims=True)) / (stacked.std(axis=1, keepdims=True) + 1e-6)


def shortcut_kappas(folder: Path) -> dict[str, float]:
    """Best quadratic-weighted kappa of each view over a few strengths of regularisation (the shortcut's best case)."""
    table = pd.read_csv(folder / "train.csv").dropna(subset=["kl_grade"])
    return {str(view): _best_kappa(folder, rows) for view, rows in table.groupby("view")}


def _best_kappa(folder: Path, table: pd.DataFrame) -> float:
    train = (table["split"] == "train").to_numpy()
    features, grades = thumbnails(folder, table["img_path"]), table["kl_grade"].astype(int).to_numpy()
    kappas = []
    for strength in (1e-3, 1e-2, 1e-1):
        reader = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=500))
        guessed = reader.fit(features[train], grades[train]).predict(features[~train])
        kappas.append(float(cohen_kappa_score(grades[~train], guessed, weights="quadratic")))
    return max(kappas)


def main() -> int:
    """Print the target beside the figures; 1 when one is missed."""
    kappas = shortcut_kappas(Path(sys.argv[1] if len(sys.argv) > 1 else "data/sample"))
    for view, kappa in kappas.items():
        met = "met" if kappa < TARGET_KAPPA else "MISSED"
        print(f"thumbnail KL quadratic-weighted kappa, {view}: {kappa:.3f}  target < {TARGET_KAPPA}  {met}")
    return 0 if max(kappas.values()) < TARGET_KAPPA else 1


if __name__ == "__main__":
    sys.exit(main())
