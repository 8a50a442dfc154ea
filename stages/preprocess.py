"""Decode every image of the manifest once and fit it to the encoder's square.

    python stages/preprocess.py
    python stages/preprocess.py --shard 2/4     (on each of 4 machines; then the first command, see docs/full-size.md)

Reads params.yaml, data/validated/manifest.parquet and the images that the pixel store lacks. Writes
data/cache/index.parquet and data/cache/cache.json; the pixels go to the pixel store, `.store/pixels/` in the project.
A shard writes pixels only.
"""

import sys

from knee_siglip.core.running import run_stage
from knee_siglip.params.files import load_params


def main() -> None:
    """Fill the store for `image_size` and `preprocess` of params.yaml."""
    params = load_params()
    from knee_siglip.imaging.fit.transform import Transform
    from knee_siglip.store.pixels import build_cache, fill_shard
    from knee_siglip.tables.manifest import read_manifest
    from knee_siglip.tables.shards import asked_shard

    transform = Transform(params.image_size, **params.preprocess.model_dump())
    shard = asked_shard(sys.argv[1:])
    if shard is None:
        build_cache(read_manifest(), transform)
    else:
        print(f"shard {shard}: {fill_shard(read_manifest(), transform, shard)} images decoded")


if __name__ == "__main__":
    run_stage(main)
