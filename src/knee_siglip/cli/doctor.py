"""The checks behind `knee-siglip doctor`: is this machine set up, and what to do where it is not.

Nothing is changed. Nothing is contacted unless `online` is set; each contact then times out after 3 seconds.
"""

import getpass
import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from knee_siglip.core import paths
from knee_siglip.core.errors import UsageError
from knee_siglip.core.threads import available_cores
from knee_siglip.params.files import load_params
from knee_siglip.params.sections import SMALL, Params, TrackingParams
from knee_siglip.tracking.privacy import SAID, is_remote, level_for, without_password
from knee_siglip.tracking.tracker import mlflow_uri, wandb_mode

State = Literal["ready", "note", "broken"]
TIMEOUT_S = 3.0
LOW_DISK_GB = 5.0
MINIMUM_PYTHON = (3, 11)


@dataclass(frozen=True)
class Check:
    """One line of the report. `note`: works, but not everything; `broken`: nothing will run."""

    name: str
    state: State
    detail: str
    advice: str = ""


def examine(online: bool = False) -> list[Check]:
    """Run every check in the current folder, in the order in which a newcomer needs them."""
    params, params_check = check_params(paths.PARAMS)
    return [
        check_python(),
        check_environment(),
        params_check,
        *check_devices(),
        check_codecs(),
        check_encoder("vision", params.model.vision, params.model.vision_revision),
        check_encoder("text", params.model.text, params.model.text_revision),
        check_hub(online),
        check_mlflow(params.tracking.mlflow, online),
        check_wandb(params.tracking.wandb),
        check_sent(params.tracking),
        check_disk("project disk", Path.cwd()),
        check_disk("store disk", paths.store_root()),
        check_user(),
        check_git_identity(),
    ]


def check_python(version: tuple[int, ...] = sys.version_info[:3]) -> Check:
    """The interpreter's version."""
    text = ".".join(map(str, version))
    if version >= MINIMUM_PYTHON:
        return Check("Python", "ready", text)
    return Check("Python", "broken", text, "install Python 3.11 or newer and run `make repro` again")


def check_environment() -> Check:
    """The stages call `python` and users call `dvc`: both must be this environment's, as PATH finds them."""
    here, found = Path(sys.executable).parent, {name: shutil.which(name) for name in ("dvc", "python")}
    advice = f"`source {here / 'activate'}`; otherwise dvc's stages start another Python or none"
    if missing := [name for name, path in found.items() if path is None]:
        return Check("environment", "note", f"{' and '.join(missing)} not on PATH", advice)
    other = [path for path in found.values() if path is not None and Path(path).parent.resolve() != here.resolve()]
    if other:
        return Check("environment", "note", f"PATH finds {other[0]} first, not that of {here}", advice)
    return Check("environment", "ready", f"{here} is on PATH")


def check_params(path: Path) -> tuple[Params, Check]:
    """The params of the current folder, or the defaults where there are none or they are wrong."""
    if not path.is_file():
        return Params(), Check("params.yaml", "note", "none in this folder: defaults", "run in the project's root")
    try:
        return load_params(path), Check("params.yaml", "ready", "valid")
    except UsageError as error:
        return Params(), Check("params.yaml", "broken", str(error), "correct the keys named")


def check_devices() -> list[Check]:
    """torch's devices and whether they compute in bf16."""
    try:
        import torch
    except ImportError as error:
        advice = "run `make repro`, which installs the locked packages"
        return [Check("torch", "broken", f"does not import: {error}", advice)]
    if torch.cuda.is_available():
        gpus = []
        for index in range(torch.cuda.device_count()):
            facts = torch.cuda.get_device_properties(index)
            precision = "bf16" if torch.cuda.is_bf16_supported() else "no bf16: fp16"
            detail = f"{facts.name}, {facts.total_memory / 2**30:.0f} GiB, {precision}"
            gpus.append(Check(f"GPU {index}", "ready", detail))
        return gpus
    detail = f"torch {torch.__version__}, no GPU, {available_cores()} CPU cores, float32"
    if shutil.which("nvidia-smi"):
        advice = "the machine has an NVIDIA driver but torch does not use it: install a CUDA build of torch"
        return [Check("devices", "note", detail, advice)]
    return [Check("devices", "note", detail, "enough for the small encoders; RAD-DINO wants a GPU")]


def check_codecs() -> Check:
    """Which compressed DICOM files can be decoded."""
    from pydicom import uid
    from pydicom.pixels import get_decoder

    syntaxes = {
        "JPEG": uid.JPEGBaseline8Bit,
        "JPEG lossless": uid.JPEGLosslessSV1,
        "JPEG-LS": uid.JPEGLSLossless,
        "JPEG 2000": uid.JPEG2000Lossless,
        "RLE": uid.RLELossless,
    }
    missing = [name for name, syntax in syntaxes.items() if not get_decoder(syntax).is_available]
    if missing:
        advice = "run `make repro`, which installs the locked codecs"
        return Check("DICOM codecs", "note", f"cannot read {', '.join(missing)}", advice)
    return Check("DICOM codecs", "ready", ", ".join(["uncompressed", *syntaxes]))


def check_encoder(tower: str, source: str, revision: str) -> Check:
    """Whether the weights named by `model.vision` or `model.text` are on this machine."""
    name = f"{tower} encoder"
    if source == SMALL:
        return Check(name, "ready", "the small one that ships with the project")
    if Path(source).is_dir():
        return Check(name, "ready", f"local folder {source}")
    if not revision:
        commits = f"https://huggingface.co/{source}/commits/main"
        advice = f"set model.{tower}_revision to the 40-digit commit shown at {commits}"
        return Check(name, "note", f"{source} has no revision", advice)
    from huggingface_hub import try_to_load_from_cache

    if isinstance(try_to_load_from_cache(source, "config.json", revision=revision), str):
        return Check(name, "ready", f"{source} is in the hub's cache")
    advice = "the stage `backbones` downloads it; it needs the hub"
    return Check(name, "note", f"{source} is not on this machine", advice)


def check_hub(online: bool) -> Check:
    """Whether the Hugging Face hub answers; asked only if `online`."""
    address = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    if not online:
        return Check("hub", "ready", f"{address} not asked", "`--online` asks; only encoders from the hub need it")
    try:
        # S310: the address is the user's own HF_ENDPOINT, and only its answer counts
        urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=TIMEOUT_S).close()  # noqa: S310
    except urllib.error.HTTPError:
        pass  # it answered, with whatever
    except (OSError, ValueError) as error:
        advice = "name a local folder in model.vision and model.text, or check the network and its proxy"
        return Check("hub", "note", f"{address} does not answer: {error}", advice)
    return Check("hub", "ready", f"{address} answers")


def check_mlflow(setting: str, online: bool) -> Check:
    """Where MLflow's runs go, and, if `online`, whether a server is listening there."""
    if setting == "none":
        return Check("MLflow", "ready", "off (tracking.mlflow: none)")
    target = os.environ.get("MLFLOW_TRACKING_URI", "") if setting == "auto" else setting
    if not target:
        return Check("MLflow", "ready", f"SQLite in {paths.tracking_root()}", "`mlflow ui` shows the runs")
    parts = urlsplit(target)
    target = without_password(target)
    if not online or not parts.hostname or parts.scheme not in ("http", "https"):
        return Check("MLflow", "ready", f"{target} not asked")
    try:
        port = parts.port or (443 if parts.scheme == "https" else 80)
        socket.create_connection((parts.hostname, port), timeout=TIMEOUT_S).close()
    except (OSError, ValueError) as error:
        advice = "start the server or unset MLFLOW_TRACKING_URI; `knee-siglip sync` sends later what it missed"
        return Check("MLflow", "note", f"{target} does not answer: {error}", advice)
    return Check("MLflow", "ready", f"{target} listens")


def check_wandb(mode: str) -> Check:
    """W&B's mode, and whether a key is set where it is needed; the key itself is not read."""
    if mode == "none":
        return Check("W&B", "ready", "off (tracking.wandb: none)")
    if importlib.util.find_spec("wandb") is None:
        return Check("W&B", "note", "wandb is not installed", "`make repro` installs it, or set tracking.wandb: none")
    mode = os.environ.get("WANDB_MODE", mode)
    if mode == "online" and not _has_wandb_key():
        return Check("W&B", "note", "online, but no key is set", "`wandb login`, or set tracking.wandb: offline")
    return Check("W&B", "ready", mode, "`wandb sync wandb/offline-run-*` sends the runs" if mode == "offline" else "")


def check_sent(tracking: TrackingParams) -> Check:
    """What each tracker gets, and whether that leaves this machine."""
    sent = []
    if tracking.mlflow != "none":
        uri = mlflow_uri(tracking, paths.tracking_root())
        remote = is_remote(uri)
        place = without_password(uri) if remote else "on this machine"
        sent.append(f"MLflow ({place}): {SAID[level_for(tracking.send, remote)]}")
    if (mode := wandb_mode(tracking)) not in ("none", "disabled"):
        place = "wandb/, for its server" if mode == "offline" else "its server"
        sent.append(f"W&B ({place}): {SAID[level_for(tracking.send, remote=True)]}")
    advice = "tracking.send: metrics | metrics_and_reports | all" if sent else ""
    return Check("what is sent", "ready", "; ".join(sent) or "nothing", advice)


def check_disk(name: str, folder: Path) -> Check:
    """Free space and the right to write where `folder` is, or will be made."""
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(existing).free / 1e9
    detail = f"{free:.1f} GB free in {folder}"
    if not os.access(existing, os.W_OK):
        advice = "change its owner, or set KNEE_SIGLIP_STORE elsewhere"
        return Check(name, "broken", f"{existing} cannot be written", advice)
    if free < LOW_DISK_GB:
        advice = f"a real training wants {LOW_DISK_GB:.0f} GB; set KNEE_SIGLIP_STORE to another disk"
        return Check(name, "note", detail, advice)
    return Check(name, "ready", detail)


def check_user() -> Check:
    """Whether the operating system knows the user's name: DVC looks it up for its locks."""
    try:
        return Check("user", "ready", getpass.getuser())
    except (KeyError, OSError):  # no passwd entry, as in a container started with an arbitrary user id
        return Check("user", "broken", "this user id has no name, and DVC refuses it", "set one: export USER=me")


def check_git_identity() -> Check:
    """`dvc exp run` commits, and fails without a name and an address."""
    advice = "`git config --global user.name ...` and `user.email ...`; `dvc exp run` needs them, `dvc repro` does not"
    try:
        missing = [
            key
            for key in ("user.name", "user.email")
            # S607: the git that the user's shell would run
            if not subprocess.run(["git", "config", "--get", key], capture_output=True, check=False).stdout.strip()  # noqa: S607
        ]
    except FileNotFoundError:
        return Check("git identity", "note", "git is not installed", "install git; experiments are kept in it")
    if missing:
        return Check("git identity", "note", f"{' and '.join(missing)} not set", advice)
    return Check("git identity", "ready", "name and address are set")


def _has_wandb_key() -> bool:
    from requests.utils import get_netrc_auth

    server = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")
    return bool(os.environ.get("WANDB_API_KEY") or get_netrc_auth(server))
