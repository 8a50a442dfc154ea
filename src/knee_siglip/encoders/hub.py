"""Downloads one pinned commit of a hub repository."""

from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from knee_siglip.core.errors import UserError
from knee_siglip.params.sections import SMALL

PROBE_SECONDS = 10
"""For the hub's first answer: the download itself retries for half a minute, too long to report a missing network."""


def download(tower: str, repository: str, revision: str, files: Sequence[str]) -> Path:
    """Folder in the hub's cache with those `files` (glob patterns) of `repository` at commit `revision`.

    A commit never changes, so cached files are not requested again.

    Raises:
        UserError: the hub cannot be reached, or has no such repository or commit, or no safetensors in it.
    """
    try:
        if cached := _from_cache(repository, revision, files):
            return cached
        _probe(repository, revision)
        return Path(snapshot_download(repository, revision=revision, allow_patterns=list(files)))
    except RevisionNotFoundError:
        raise UserError(
            f"model.{tower}_revision = {revision!r}: {repository} has no such commit; see "
            f"https://huggingface.co/{repository}/commits/main"
        ) from None
    except (GatedRepoError, RepositoryNotFoundError):
        raise UserError(
            f"model.{tower} = {repository!r}: no such folder here, and the hub has no such repository or requires a "
            "login for it (`hf auth login`)"
        ) from None
    except (OSError, HTTPError, HfHubHTTPError) as error:
        offline = isinstance(error, OfflineModeIsEnabled) or constants.HF_HUB_OFFLINE
        reason = "HF_HUB_OFFLINE is set" if offline else f"{constants.ENDPOINT} gave {type(error).__name__}"
        raise UserError(
            f"{repository} at revision {revision} is not in the hub's cache on this machine and cannot be downloaded "
            f"({reason}); connect (HTTPS_PROXY behind a proxy, no HF_HUB_OFFLINE), or copy the repository here and "
            f"give its folder as model.{tower}, or use model.{tower}={SMALL}"
        ) from None


def _from_cache(repository: str, revision: str, files: Sequence[str]) -> Path | None:
    """The cached folder if it holds a config and weights: another program may have fetched only a part."""
    try:
        folder = Path(
            snapshot_download(repository, revision=revision, allow_patterns=list(files), local_files_only=True)
        )
    except OSError:
        return None
    complete = (folder / "config.json").is_file() and any(folder.glob("model*.safetensors"))
    return folder if complete else None


def _probe(repository: str, revision: str) -> None:
    """Ask the hub once, without retries, whether the commit holds safetensors weights."""
    facts = HfApi().model_info(repository, revision=revision, timeout=PROBE_SECONDS)
    names = [file.rfilename for file in facts.siblings or []]
    if not any(name.startswith("model") and name.endswith(".safetensors") for name in names):
        raise UserError(
            f"{repository} at {revision} holds no model.safetensors; choose a later commit or another repository"
        )
