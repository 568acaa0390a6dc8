"""Turns what the user wrote into a local path: a file or folder, package:NAME, hf-hub:OWNER/NAME[@REVISION], or https://.

A downloaded file is complete or absent, and a pinned sha256 is compared whenever the file is used.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import re
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Callable, Optional, Tuple

from vit_ipu import __version__
from vit_ipu.errors import CheckpointError, UserError, suggest
from vit_ipu.files import cache_folder, expand_home, sha256_of, written_whole
from vit_ipu.text import reason_of
from vit_ipu.weights.choose import WEIGHT_FILES, WEIGHT_SUFFIXES, is_index, weight_map
from vit_ipu.weights.network import can_reach

_DESCRIPTIONS = ("config.json", "preprocessor_config.json")
PRETRAINED = Path(__file__).parents[1] / "pretrained"
"""Folder of the weights that the package contains; its README.md says how they were trained."""
_MAX_DOWNLOAD = 32 << 30
_CHUNK = 1 << 20
_TIMEOUT_SECONDS = 60


@dataclass(frozen=True)
class Located:
    """The place of a checkpoint on the disk."""

    path: Path
    """A file or a folder."""
    verified: bool
    """Whether a sha256 was pinned and matches."""


def split_part(source: str) -> Tuple[str, Optional[str]]:
    """Splits `FILE#KEY`, which names a state dict in a training checkpoint; a # may be in the name of a file, too."""
    location, _, key = source.rpartition("#")
    if not location or not key or os.path.exists(os.path.expanduser(source)):
        return source, None
    return location, key


def locate(source: str, *, sha256: Optional[str] = None, notify: Callable[[str], None] = lambda line: None) -> Located:
    """Returns the local path of a source, downloaded if needed. Raises CheckpointError.

    `notify` is called with a line about each download.
    """
    pinned = _checked_sha256(sha256)
    scheme = _scheme_of(source)
    if scheme is None:
        return _from_disk(source, pinned)
    if scheme == "package:":
        return _from_disk(str(_path_in_package(source)), pinned)
    if scheme == "hf-hub:":
        return _from_hub(source, pinned)
    _check_address(source, scheme, pinned)
    assert pinned is not None
    return Located(_downloaded(source, pinned, notify), verified=True)


def require_source(source: str, *, sha256: Optional[str] = None) -> None:
    """Raises CheckpointError if a source cannot be read as far as its name tells: a file is missing, or an address is
    not https, has no sha256, or is not that of a repository. Nothing is read or fetched."""
    pinned = _checked_sha256(sha256)
    location, _ = split_part(source)
    scheme = _scheme_of(location)
    if scheme is None:
        _existing_path(location)
    elif scheme == "package:":
        _path_in_package(location)
    elif scheme == "hf-hub:":
        _repository_and_revision(location)
    else:
        _check_address(location, scheme, pinned)


def _checked_sha256(sha256: Optional[str]) -> Optional[str]:
    if sha256 is not None and not re.fullmatch(r"[0-9a-fA-F]{64}", sha256):
        raise CheckpointError(f"sha256 {sha256!r} is not 64 hexadecimal digits: see sha256sum FILE")
    return sha256.lower() if sha256 is not None else None


def _scheme_of(source: str) -> Optional[str]:
    """Returns the scheme of an address, such as `https://`; None for a path."""
    scheme = re.match(r"hf-hub:|package:|[a-zA-Z][a-zA-Z0-9+.-]*://", source)
    return None if scheme is None else scheme.group().lower()


def _check_address(source: str, scheme: str, pinned: Optional[str]) -> None:
    if scheme != "https://":
        raise CheckpointError(f"cannot fetch {source}: use https:// or a local path")
    if pinned is None:
        raise CheckpointError(f"cannot fetch {source} without its sha256: give model.init_sha256 (or --sha256)")


# --------------------------------------------------------------------------------------------- disk


def _path_in_package(source: str) -> Path:
    """Returns the path of weights that the package contains. Raises CheckpointError if it contains none so named."""
    paths = {f"package:{path.stem}": path for path in sorted(PRETRAINED.glob("*.safetensors"))}
    if source not in paths:
        raise CheckpointError(f"{source} does not exist{suggest(source, paths)}")
    return paths[source]


def _from_disk(source: str, pinned: Optional[str]) -> Located:
    path = _existing_path(source)
    if pinned is not None:
        if path.is_dir():
            raise CheckpointError(f"{path} is a folder: a sha256 pins a file, so name its file of weights")
        _check_sha256(path, pinned)
    return Located(path, verified=pinned is not None)


def _existing_path(source: str) -> Path:
    """Returns the path of a source on the disk. Raises CheckpointError if it does not exist."""
    try:
        path = expand_home(source)
        exists = path.exists()
    except UserError as error:
        raise CheckpointError(f"cannot read {error}") from None
    except (OSError, ValueError) as error:  # a name that no file can have
        raise CheckpointError(f"cannot read {source}: {reason_of(error)}") from None
    if not exists:
        raise CheckpointError(f"no checkpoint at {path}: there is no such file or folder")
    return path


def _check_sha256(path: Path, pinned: str) -> None:
    if not path.is_file():  # to read a pipe would wait for another program
        raise CheckpointError(f"cannot read {path}: it is not a regular file")
    try:
        found = sha256_of(path)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {reason_of(error)}") from None
    if found != pinned:
        raise CheckpointError(f"{path} has the sha256 {found} and not {pinned}: it is damaged or another file")


# -------------------------------------------------------------------------------------------- https


def _downloaded(url: str, pinned: str, notify: Callable[[str], None]) -> Path:
    """Returns the file of a URL, from the cache if the cached file is complete."""
    name = re.sub(r"[^A-Za-z0-9_.-]", "_", re.split(r"[?#]", url)[0].rsplit("/", 1)[-1])[-100:]
    if not name.endswith(WEIGHT_SUFFIXES):
        raise CheckpointError(f"cannot fetch {url}: expected a file that ends in {', '.join(WEIGHT_SUFFIXES)}")
    folder = cache_folder()
    cached = folder / f"{pinned[:16]}-{name}"
    if _is_cached(cached, pinned):
        return cached
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with written_whole(cached, unique=True) as temporary, temporary.open("wb") as file:
            _fetch(url, file, pinned, notify)
    except CheckpointError:
        raise
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise CheckpointError(f"cannot fetch {url}: {reason_of(error)}") from error
    return cached


def _is_cached(path: Path, pinned: str) -> bool:
    """Tells whether the file is in the cache and complete. Raises CheckpointError if the cache cannot be read."""
    try:
        return path.is_file() and sha256_of(path) == pinned
    except OSError as error:
        remedy = "remove it, or set XDG_CACHE_HOME to another folder"
        raise CheckpointError(f"cannot read the cached file {path}: {reason_of(error)}; {remedy}") from None


def _fetch(url: str, file: BinaryIO, pinned: str, notify: Callable[[str], None]) -> None:
    """Downloads the URL into `file`. Raises CheckpointError if the content is not what was pinned."""
    digest, count = hashlib.sha256(), 0
    with _open_url(url) as response:
        length = response.headers.get("Content-Length", "")
        expected = int(length) if length.isdigit() else None
        if expected is not None and expected > _MAX_DOWNLOAD:
            raise CheckpointError(
                f"cannot fetch {url}: {expected >> 30} GiB is more than {_MAX_DOWNLOAD >> 30} GiB, the limit"
            )
        size = "" if expected is None else f" ({expected / 1e6:.0f} MB)"
        notify(f"fetching {url}{size}")
        for part in iter(lambda: response.read(_CHUNK), b""):
            digest.update(part)
            file.write(part)
            count += len(part)
            if count > _MAX_DOWNLOAD:
                raise CheckpointError(f"cannot fetch {url}: more than {_MAX_DOWNLOAD >> 30} GiB, the limit")
    if expected is not None and count < expected:
        raise CheckpointError(
            f"cannot fetch {url}: the download broke off after {count} of {expected} bytes: try again"
        )
    if digest.hexdigest() != pinned:
        raise CheckpointError(
            f"{url} has the sha256 {digest.hexdigest()} and not {pinned}: it is another file than the one that was "
            "pinned"
        )


class _SecureRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        if not newurl.lower().startswith("https://"):
            raise CheckpointError(f"cannot fetch {req.full_url}: it redirects to {newurl}, which is not https")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _open_url(url: str) -> Any:
    """Returns the response of the server, a context manager with `headers` and `read`."""
    request = urllib.request.Request(url, headers={"User-Agent": f"vit-ipu/{__version__}"})
    return urllib.request.build_opener(_SecureRedirects).open(request, timeout=_TIMEOUT_SECONDS)


# ------------------------------------------------------------------------------- Hugging Face's Hub


def _from_hub(source: str, pinned: Optional[str]) -> Located:
    """Returns the snapshot folder of a repository in huggingface_hub's cache, with its config and its weights."""
    repository = _Repository(source, *_repository_and_revision(source))
    for name in _DESCRIPTIONS:
        repository.fetch(name)
    weights = next((path for path in map(repository.fetch, WEIGHT_FILES) if path is not None), None)
    if weights is None:
        raise repository.lacks(f"weights: {', '.join(WEIGHT_FILES[:-1])} or {WEIGHT_FILES[-1]}")
    if is_index(weights):
        if pinned is not None:
            raise CheckpointError(f"{source} has its weights in several files, and a sha256 pins one")
        for name in sorted(set(weight_map(weights).values())):
            if repository.fetch(name) is None:
                raise repository.lacks(f"{name}, which {weights.name} names")
    if pinned is not None:
        _check_sha256(weights, pinned)
    return Located(weights.parent, verified=pinned is not None)


def _repository_and_revision(source: str) -> Tuple[str, Optional[str]]:
    match = re.fullmatch(r"hf-hub:([\w.-]+/[\w.-]+)(?:@([\w./-]+))?", source)
    if match is None:
        raise CheckpointError(f"{source} is not of the form hf-hub:OWNER/NAME or hf-hub:OWNER/NAME@REVISION")
    return match.group(1), match.group(2)


class _Repository:
    """A repository of the Hugging Face Hub, of which all files come from one commit."""

    def __init__(self, source: str, name: str, revision: Optional[str]) -> None:
        try:
            import huggingface_hub
            import huggingface_hub.constants
            import huggingface_hub.errors
        except ImportError:
            raise CheckpointError(f"{source} needs the extra hub: pip install 'vit-ipu[hub]'") from None
        self._hub: Any = huggingface_hub
        self._source, self._name, self._revision = source, name, revision
        self._cache_only = self._is_offline or not can_reach(huggingface_hub.constants.ENDPOINT)

    def fetch(self, name: str) -> Optional[Path]:
        """Returns the path of a file in the cache; None if the repository (offline: the cache) lacks the file."""
        errors = self._hub.errors
        try:
            options = {"local_files_only": True} if self._cache_only else {}
            path = Path(self._hub.hf_hub_download(self._name, name, revision=self._revision, **options))
        except errors.LocalEntryNotFoundError as error:
            if self._is_offline or self._is_known_to_lack(name):
                return None
            raise CheckpointError(
                f"cannot reach the Hugging Face Hub for {name} of {self._source}, and the cache "
                f"{self._hub.constants.HF_HUB_CACHE} lacks it: check the network, or give a file or folder of weights"
            ) from error
        except errors.EntryNotFoundError:
            return None
        except Exception as error:
            # huggingface_hub 0 uses requests, later versions use httpx: their errors lack a common base class.
            raise CheckpointError(f"cannot fetch {self._source}: {self._problem(error)}") from error
        self._revision = path.parent.name  # a push between two files must not mix commits
        return path

    def lacks(self, what: str) -> CheckpointError:
        if self._is_offline:
            return CheckpointError(
                f"the cache {self._hub.constants.HF_HUB_CACHE} of {self._source} has no {what}: unset HF_HUB_OFFLINE "
                "if a network is available"
            )
        return CheckpointError(f"{self._source} has no {what}")

    @property
    def _is_offline(self) -> bool:
        return bool(self._hub.constants.HF_HUB_OFFLINE)

    def _is_known_to_lack(self, name: str) -> bool:
        cached = self._hub.try_to_load_from_cache(self._name, name, revision=self._revision)
        return cached is not None and not isinstance(cached, str)

    def _problem(self, error: Exception) -> str:
        errors = self._hub.errors
        if isinstance(error, errors.GatedRepoError):  # tested before its base class, RepositoryNotFoundError
            return f"it is gated: accept its terms at https://huggingface.co/{self._name}, then hf auth login"
        if isinstance(error, errors.RepositoryNotFoundError):
            return "there is no such repository, or it is private: check the name, or hf auth login"
        if isinstance(error, errors.RevisionNotFoundError):
            return f"it has no revision {self._revision}"
        return reason_of(error)
