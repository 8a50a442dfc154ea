"""Fill a store on a disk of 100 kB; run in a mount namespace of its own. Arguments: ids and files as JSON, a folder.

Prints as JSON what each attempt gave: the number of images decoded, or the sentence of its error.
"""

import json
import subprocess
import sys
from pathlib import Path

from knee_siglip.core.errors import UserError
from knee_siglip.imaging.fit.transform import Transform
from knee_siglip.store import filling
from knee_siglip.store.pixels import PixelStore

TRANSFORM = Transform(28, "pad", "local")


def mount(folder: Path, options: str) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", str(folder)], check=True)


def attempt(folder: Path, ids: list[str], files: list[str]) -> int | str:
    try:
        return PixelStore(folder, TRANSFORM).ensure(ids, files, workers=2)
    except UserError as error:
        return str(error)


def main() -> None:
    ids, files, folder = json.loads(sys.argv[1]), json.loads(sys.argv[2]), Path(sys.argv[3])
    filling.COMMIT_SECONDS = 0.005
    mount(folder, "size=100k")
    answers: dict[str, object] = {"early": attempt(folder, ids, files)}
    filling.require_space = lambda *_: None
    answers["full"] = attempt(folder, ids, files)
    answers["left"] = sorted({file.suffix or file.name for file in (folder / TRANSFORM.key).iterdir()})
    mount(folder, "remount,size=10m")
    done = PixelStore(folder, TRANSFORM)
    answers["kept"] = len(done.image_ids)
    answers["continued"] = attempt(folder, ids[:-1], files[:-1])
    mount(folder, "remount,ro")
    answers["read_only_reader"] = attempt(folder, ids[:-1], files[:-1])
    answers["read_only_builder"] = attempt(folder, ids, files)
    done.refresh()
    answers["pixels"] = done.gather(ids[:-1]).tobytes().hex()
    print(json.dumps(answers))


if __name__ == "__main__":
    main()
