"""Checks that a DVC stage reads what the stages before it wrote.

DVC hashes a file again only when its time, size or inode changes, so a bit that flips on the disk is not seen. A stage
therefore compares the outs that it reads with the hashes in dvc.lock before it starts.
"""

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

from knee_siglip.core.errors import UserError
from knee_siglip.core.files import PARTIAL, is_first_process

LOCK_FILE = Path("dvc.lock")


def check_inputs_undamaged() -> None:
    """In a DVC stage, compare what it reads of other stages' outs with dvc.lock; elsewhere nothing happens.

    Unfinished files in its own outs go: DVC has removed these, but one that lost its `dvc` may have written since.

    Raises:
        UserError: naming the first that differs.
    """
    stage = os.environ.get("DVC_STAGE", "").rpartition(":")[2]
    if not stage or not LOCK_FILE.is_file() or not is_first_process():
        return
    stages = _read_lock()
    for out in stages.get(stage, {}).get("outs", []):
        _remove_unfinished(Path(out["path"]))
    read = [Path(dep["path"]) for dep in stages.get(stage, {}).get("deps", [])]
    for writer, entry in stages.items():
        for out in entry.get("outs", []):
            path = Path(out["path"])
            is_read = any(path.is_relative_to(dep) or dep.is_relative_to(path) for dep in read)
            # without `hash` an older DVC wrote the entry, whose md5 of texts ignores line ends
            if writer != stage and is_read and out.get("hash") == "md5" and _md5(path) not in ("", out["md5"]):
                raise UserError(
                    f"{path} is not what the stage {writer} wrote (its md5 in {LOCK_FILE} differs): it was damaged or "
                    f"edited; remove it and run dvc checkout {path}, or accept it with dvc commit"
                )


def _read_lock() -> dict[str, Any]:
    from ruamel.yaml import YAML

    try:
        content = YAML(typ="safe").load(LOCK_FILE)
        return {name: entry for name, entry in content["stages"].items() if isinstance(entry, dict)}
    except Exception:  # DVC, which started this stage, has read it and rewrites it whole
        return {}


def _remove_unfinished(out: Path) -> None:
    """What a killed `atomic_file` or `atomic_folder` has left in an out, or beside it."""
    for path in (*out.rglob(f"*.*{PARTIAL}"), *out.parent.glob(f"{out.name}.*{PARTIAL}")):
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def _md5(path: Path) -> str:
    """As dvc.lock has it, of a file or a folder; empty where there is neither: the stage itself says what it misses."""
    if path.is_file():
        return _md5_of_file(path)
    if not path.is_dir():
        return ""
    files = sorted(file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file())
    entries = [{"md5": _md5_of_file(path / name), "relpath": name} for name in files]
    return hashlib.md5(json.dumps(entries).encode(), usedforsecurity=False).hexdigest() + ".dir"


def _md5_of_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
