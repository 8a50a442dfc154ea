"""Write the sample: its pictures and `train.csv`, the same bytes for the same seed on any machine load.

    write_sample(Path("data/sample"), patients=1000, seed=42, size=512)

A knee is a study, `<patient>_<L|R>`: a frontal picture and, of some, a lateral one under the same impression. Every
knee has a random stream of its own, keyed by (seed, patient, knee), so the number of processes changes nothing.
"""

import json
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from knee_siglip.core.files import atomic_file, atomic_folder
from knee_siglip.core.processes import work_in_chunks
from knee_siglip.sample.findings import SIDES, Labels, View, draw_labels
from knee_siglip.sample.impression import draw_text, text_alternatives
from knee_siglip.sample.radiograph import draw_knee

LATERAL_SHARE = 0.125
"""Studies with a lateral view, drawn without regard to what they show: enough for figures of the view on the
test split, few enough that the headline figures still tell what the small encoder does, pretrained on frontal views."""

TEST_SHARE, VAL_SHARE = 0.15, 0.10
SPLIT_STREAM, VIEWS_STREAM = 1, 2
"""Spawn keys of the streams that shuffle patients into splits and choose the studies with a lateral view; knees have
none, so they never meet."""

CASES_PER_CHUNK = 64


@dataclass(frozen=True)
class Case:
    """One picture before it is drawn; `rng` is its knee's random stream after labels and text were drawn from it."""

    patient_id: str
    labels: Labels
    alternatives: dict[str, float]
    impression: str
    rng: np.random.Generator
    view: View = "ap"

    @property
    def study_id(self) -> str:
        """One knee's visit: all of its views share one text."""
        return f"{self.patient_id}_{self.labels.side[0].upper()}"

    @property
    def img_path(self) -> str:
        """Where the picture lies, relative to the CSV."""
        return f"images/{self.study_id}{'' if self.view == 'ap' else '_lateral'}.png"


def iter_cases(patients: int, seed: int) -> Iterator[Case]:
    """Labels and texts of all pictures in the order of the CSV, without drawing any: well under a millisecond each."""
    views = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(VIEWS_STREAM,)))
    lateral = views.random((patients, len(SIDES))) < LATERAL_SHARE
    for patient in range(1, patients + 1):
        for knee, side in enumerate(SIDES):
            rng = np.random.default_rng([seed, patient, knee])
            labels = draw_labels(rng, side)
            alternatives = text_alternatives(labels)
            case = Case(f"P{patient:05d}", labels, alternatives, draw_text(rng, alternatives), rng)
            beside = [replace(case, view="lateral", rng=deepcopy(rng))] if lateral[patient - 1, knee] else []
            yield from (case, *beside)


def assign_splits(patients: int, seed: int) -> dict[str, str]:
    """Patient id -> train, val or test, by a seeded shuffle; both knees of a patient stay together."""
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(SPLIT_STREAM,)))
    test, val = round(TEST_SHARE * patients), round(VAL_SHARE * patients)
    names = ["test"] * test + ["val"] * val + ["train"] * (patients - test - val)
    return {f"P{patient + 1:05d}": name for patient, name in zip(rng.permutation(patients), names, strict=True)}


def label_table(*, patients: int, seed: int) -> pd.DataFrame:
    """The CSV's rows but for `findings` (their boxes are known only once drawn)."""
    splits = assign_splits(patients, seed)
    rows = [
        {
            "img_path": case.img_path,
            "impression": case.impression,
            "split": splits[case.patient_id],
            "patient_id": case.patient_id,
            "study_id": case.study_id,
            "side": case.labels.side,
            "view": case.view,
            "kl_grade": case.labels.kl_grade,
            "text_alternatives": json.dumps({text: round(p, 4) for text, p in case.alternatives.items()}),
        }
        for case in iter_cases(patients, seed)
    ]
    return pd.DataFrame(rows).astype({"kl_grade": "Int64"})


def write_sample(folder: Path, *, patients: int, seed: int, size: int, workers: int | None = None) -> pd.DataFrame:
    """Draw two knees of each of `patients` in pictures of `size` pixels (512 or more); returns the written table.

    Images are complete or absent: they are drawn aside and moved, and the CSV that names them comes last.
    """
    folder = Path(folder)
    table = label_table(patients=patients, seed=seed)
    with atomic_folder(folder / "images") as images:
        findings = _draw_all(images, list(iter_cases(patients, seed)), size, workers)
    table.insert(list(table.columns).index("text_alternatives"), "findings", findings)
    with atomic_file(folder / "train.csv") as file:
        table.to_csv(file, index=False, lineterminator="\n")
    return table


def _draw_all(folder: Path, cases: list[Case], size: int, workers: int | None) -> list[str]:
    """Draw every knee into `folder`; returns the findings as JSON, in the order of the CSV."""
    drawn = work_in_chunks(partial(_draw, folder, size), cases, CASES_PER_CHUNK, "Drawing knees", workers)
    findings = dict(chain.from_iterable(drawn))
    return [findings[case.img_path] for case in cases]


def _draw(folder: Path, size: int, cases: Sequence[Case]) -> list[tuple[str, str]]:
    """Draw knees; returns the name and the findings of each."""
    drawn = []
    for case in cases:
        image, findings = draw_knee(case.rng, case.labels, size, case.view)
        Image.fromarray(image).save(folder / Path(case.img_path).name, compress_level=1)
        drawn.append((case.img_path, json.dumps(findings)))
    return drawn
