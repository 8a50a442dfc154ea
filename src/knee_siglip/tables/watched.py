"""Images that DVC does not watch: when they change under an unchanged table, nothing reruns."""

import os
from collections.abc import Iterable
from pathlib import Path


def outside_images(files: Iterable[str | Path], folder: str, key: str) -> tuple[list[str], str]:
    """Files outside the folder that the param `key` names, sorted, and a sentence about them; ([], "") without any."""
    watched = _absolute(folder)
    folders = {str(name): os.path.split(name)[0] for name in files if name}  # few, of a million files
    beyond = {parent for parent in set(folders.values()) if not _absolute(parent).is_relative_to(watched)}
    outside = sorted(name for name, parent in folders.items() if parent in beyond)
    if not outside:
        return [], ""
    common = os.path.commonpath([_absolute(parent) for parent in beyond])
    remedy = f"name their folder: -S {key}={common}"
    if common == os.path.sep:  # DVC would watch the whole machine
        remedy = f"put them, or links to them, below one folder and name that as {key}"
    return outside, (
        f"images outside {key} = {folder}: {len(outside)}. When they change under an unchanged CSV, nothing reruns; "
        f"{remedy}"
    )


def _absolute(name: str | Path) -> Path:
    """Symbolic links stay: DVC looks at the path, not at where it leads."""
    return Path(os.path.normpath(Path(name).absolute()))
