"""Decode every image of the manifest once and fit it to the encoder's square.

    python stages/preprocess.py

Reads params.yaml, data/validated/manifest.parquet and the images that the pixel store lacks. Writes
data/cache/index.parquet and data/cache/cache.json; the pixels go to the pixel store, `.store/pixels/` in the project.
"""

from knee_siglip.core.errors import run_stage
from knee_siglip.imaging.fit.transform import Transform
from knee_siglip.params.files import load_params
from knee_siglip.store.pixels import build_cache
from knee_siglip.tables.manifest import read_manifest


def main() -> None:
    """Fill the store for `image_size` and `preprocess` of params.yaml."""
    params = load_params()
    transform = Transform(params.image_size, **params.preprocess.model_dump())
    build_cache(read_manifest(), transform)


if __name__ == "__main__":
    run_stage(main)
