"""From what the user wrote to a local path: a file or folder, hf-hub:OWNER/NAME[@REVISION], or https://.

What comes from the network is whole or not there, and a pinned sha256 is compared whenever the file is used.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import os
import re
import tempfile
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Callable, Dict, Optional

from vit_ipu import __version__
from vit_ipu.data.sources.listing import cache_folder
from vit_ipu.runs.checkpoint import CheckpointError

WEIGHT_SUFFIXES = (".safetensors", ".npz", ".pth", ".pt", ".bin")
INDEX_SUFFIX = ".safetensors.index.json"
"""Of a file that names the shards of weights in several files."""

_WEIGHTS = ("model.safetensors", "model" + INDEX_SUFFIX, "pytorch_model.bin")
_DESCRIPTIONS = ("config.json", "preprocessor_config.json")
_MAX_DOWNLOAD, _MAX_INDEX = 32 << 30, 64 << 20
_CHUNK = 1 << 20
_TIMEOUT_SECONDS = 60


@dataclass(frozen=True)
class Located:
    """Where a checkpoint is."""

    path: Path
    """A file or a folder."""
    verified: bool
    """Its sha256 was pinned and is right."""


def locate(source: str, *, sha256: Optional[str] = None, say: Callable[[str], None] = lambda line: None) -> Located:
    """The local path of a source, fetched if it is elsewhere; `say` hears of downloads. Raises CheckpointError."""
    if sha256 is not None and not re.fullmatch(r"[0-9a-fA-F]{64}", sha256):
        raise CheckpointError(f"sha256 {sha256!r} is not 64 hexadecimal digits: see sha256sum FILE")
    pinned = sha256.lower() if sha256 is not None else None
    scheme = re.match(r"hf-hub:|[a-zA-Z][a-zA-Z0-9+.-]*://", source)
    if scheme is None:
        return _from_disk(source, pinned)
    if scheme.group() == "hf-hub:":
        return _from_hub(source, pinned)
    if scheme.group().lower() != "https://":
        raise CheckpointError(f"cannot fetch {source}: use https:// or a local path")
    if pinned is None:
        raise CheckpointError(f"cannot fetch {source} without its sha256: give model.init_sha256 (or --sha256)")
    return Located(_downloaded(source, pinned, say), verified=True)


def weight_file(folder: Path) -> Path:
    """The file of a foreign folder that holds the weights, safetensors before pickles. Raises CheckpointError."""
    found = [folder / name for name in _WEIGHTS if (folder / name).is_file()]
    if not found:
        found = sorted(path for path in folder.glob("*") if path.suffix in WEIGHT_SUFFIXES and path.is_file())
        if len(found) > 1:
            names = ", ".join(path.name for path in found)
            raise CheckpointError(f"{folder} holds several files of weights ({names}): name one of them")
    if not found:
        raise CheckpointError(
            "{} holds no weights: expected {} or one file that ends in {}".format(
                folder, ", ".join(_WEIGHTS), ", ".join(WEIGHT_SUFFIXES)
            )
        )
    if leads_out(found[0]):
        raise CheckpointError(f"{found[0]} leads out of the folder: name the file that it links to")
    return found[0]


def leads_out(path: Path) -> bool:
    """Whether links lead from `path` out of its folder; a Hugging Face cache's links to its blobs do not count."""
    folder = path.parent.resolve()
    homes = [folder]
    if folder.parent.name == "snapshots":
        repository = folder.parent.parent
        homes.append(repository / "blobs")
        if repository.name.startswith("models--"):  # huggingface_hub 2 shares blobs among the repositories of a cache
            homes.append(repository.parent / "blobs")
    return not any(home in path.resolve().parents for home in homes)


def weight_map(index: Path) -> Dict[str, str]:
    """The shard, a file beside the index, of each tensor of a safetensors index. Raises CheckpointError."""
    try:
        if index.stat().st_size > _MAX_INDEX:
            raise ValueError
        shards: Dict[str, str] = dict(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
        plain = [re.fullmatch(r"[^/\\\0]+\.safetensors", name) for name in shards.values()]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        raise CheckpointError(f"cannot read {index}: it is not an index of safetensors files") from None
    for name, match in zip(shards.values(), plain):
        if match is None:
            raise CheckpointError(f"cannot read {index}: its shard {name!r} is not a .safetensors file beside it")
    return shards


# --------------------------------------------------------------------------------------------- disk


def _from_disk(source: str, pinned: Optional[str]) -> Located:
    try:
        path = Path(source).expanduser()
        exists = path.exists()
    except (OSError, ValueError, RuntimeError, KeyError) as error:  # an impossible name; the last two: of nobody's ~
        raise CheckpointError(f"cannot read {source}: {_line(error)}") from None
    if not exists:
        raise CheckpointError(f"no checkpoint at {path}: there is no such file or folder")
    if pinned is not None:
        if path.is_dir():
            raise CheckpointError(f"{path} is a folder: a sha256 pins a file, so name its file of weights")
        _check_sha256(path, pinned)
    return Located(path, verified=pinned is not None)


def _check_sha256(path: Path, pinned: str) -> None:
    found = _sha256_of(path)
    if found != pinned:
        raise CheckpointError(f"{path} has the sha256 {found} and not {pinned}: it is damaged or another file")


def _sha256_of(path: Path) -> str:
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            for part in iter(lambda: file.read(_CHUNK), b""):
                digest.update(part)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from None
    return digest.hexdigest()


# -------------------------------------------------------------------------------------------- https


def _downloaded(url: str, pinned: str, say: Callable[[str], None]) -> Path:
    """The file of a URL, from the cache if it is there and whole."""
    name = re.sub(r"[^A-Za-z0-9_.-]", "_", re.split(r"[?#]", url)[0].rsplit("/", 1)[-1])[-100:]
    if not name.endswith(WEIGHT_SUFFIXES):
        raise CheckpointError(
            "cannot fetch {}: expected a file that ends in {}".format(url, ", ".join(WEIGHT_SUFFIXES))
        )
    folder = cache_folder()
    cached = folder / f"{pinned[:16]}-{name}"
    if cached.is_file() and _sha256_of(cached) == pinned:
        return cached
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(prefix=".fetching-", dir=str(folder))
        try:
            with os.fdopen(descriptor, "wb") as file:
                _fetch(url, file, pinned, say)
            os.replace(temporary, str(cached))
        finally:  # also after ctrl-C
            with contextlib.suppress(FileNotFoundError):
                os.remove(temporary)
    except CheckpointError:
        raise
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise CheckpointError(f"cannot fetch {url}: {_line(error)}") from error
    return cached


def _fetch(url: str, file: BinaryIO, pinned: str, say: Callable[[str], None]) -> None:
    """Writes what the URL has into `file`, and onto the disk. Raises CheckpointError if it is not what was pinned."""
    digest, count = hashlib.sha256(), 0
    with _open_url(url) as response:
        length = response.headers.get("Content-Length", "")
        expected = int(length) if length.isdigit() else None
        if expected is not None and expected > _MAX_DOWNLOAD:
            raise CheckpointError(f"cannot fetch {url}: {expected >> 30} GiB is more than {_MAX_DOWNLOAD >> 30}")
        say("fetching {}{}".format(url, "" if expected is None else f" ({expected / 1e6:.0f} MB)"))
        for part in iter(lambda: response.read(_CHUNK), b""):
            digest.update(part)
            file.write(part)
            count += len(part)
            if count > _MAX_DOWNLOAD:
                raise CheckpointError(f"cannot fetch {url}: more than {_MAX_DOWNLOAD >> 30} GiB")
    if expected is not None and count < expected:
        raise CheckpointError(f"cannot fetch {url}: it broke off after {count} of {expected} bytes: try again")
    if digest.hexdigest() != pinned:
        raise CheckpointError(
            f"{url} has the sha256 {digest.hexdigest()} and not {pinned}: it is another file than the one that was "
            "pinned"
        )
    file.flush()
    os.fsync(file.fileno())


class _SecureRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        if not newurl.lower().startswith("https://"):
            raise CheckpointError(f"cannot fetch {req.full_url}: it redirects to {newurl}, which is not https")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _open_url(url: str) -> Any:
    """The response of the server, a context manager with `headers` and `read`."""
    request = urllib.request.Request(url, headers={"User-Agent": f"vit-ipu/{__version__}"})
    return urllib.request.build_opener(_SecureRedirects).open(request, timeout=_TIMEOUT_SECONDS)


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


# ------------------------------------------------------------------------------- Hugging Face's Hub


def _from_hub(source: str, pinned: Optional[str]) -> Located:
    """The snapshot folder of a repository in huggingface_hub's cache, with its config and its weights."""
    match = re.fullmatch(r"hf-hub:([\w.-]+/[\w.-]+)(?:@([\w./-]+))?", source)
    if match is None:
        raise CheckpointError(f"{source} is not of the form hf-hub:OWNER/NAME or hf-hub:OWNER/NAME@REVISION")
    repository = _Repository(source, match.group(1), match.group(2))
    for name in _DESCRIPTIONS:
        repository.fetch(name)
    weights = next((path for path in map(repository.fetch, _WEIGHTS) if path is not None), None)
    if weights is None:
        raise repository.lacks("weights: {} or {}".format(", ".join(_WEIGHTS[:-1]), _WEIGHTS[-1]))
    if weights.name.endswith(INDEX_SUFFIX):
        if pinned is not None:
            raise CheckpointError(f"{source} has its weights in several files, and a sha256 pins one")
        for name in sorted(set(weight_map(weights).values())):
            if repository.fetch(name) is None:
                raise repository.lacks(f"{name}, which {weights.name} names")
    if pinned is not None:
        _check_sha256(weights, pinned)
    return Located(weights.parent, verified=pinned is not None)


class _Repository:
    """A repository of the Hub, its files all from one commit."""

    def __init__(self, source: str, name: str, revision: Optional[str]) -> None:
        try:
            import huggingface_hub
            import huggingface_hub.constants
            import huggingface_hub.errors
        except ImportError:
            raise CheckpointError(f"{source} needs the extra hub: pip install 'vit-ipu[hub]'") from None
        self._hub: Any = huggingface_hub
        self._source, self._name, self._revision = source, name, revision

    def fetch(self, name: str) -> Optional[Path]:
        """The path of a file in the cache; None if the repository has none, or offline the cache."""
        errors = self._hub.errors
        try:
            path = Path(self._hub.hf_hub_download(self._name, name, revision=self._revision))
        except errors.LocalEntryNotFoundError as error:
            if self._is_offline or self._is_known_to_lack(name):
                return None
            raise CheckpointError(
                f"cannot reach the Hugging Face Hub for {name} of {self._source}, and the cache "
                f"{self._hub.constants.HF_HUB_CACHE} has none: check the network"
            ) from error
        except errors.EntryNotFoundError:
            return None
        except Exception as error:  # requests in huggingface_hub 0, httpx since: their errors have no common base
            raise CheckpointError(f"cannot fetch {self._source}: {self._problem(error)}") from error
        self._revision = path.parent.name  # a push between two files must not mix commits
        return path

    def lacks(self, what: str) -> CheckpointError:
        if self._is_offline:
            return CheckpointError(
                f"the cache {self._hub.constants.HF_HUB_CACHE} of {self._source} has no {what}: unset HF_HUB_OFFLINE "
                "where there is a network"
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
        if isinstance(error, errors.GatedRepoError):  # before its base, RepositoryNotFoundError
            return f"it is gated: accept its terms at https://huggingface.co/{self._name}, then hf auth login"
        if isinstance(error, errors.RepositoryNotFoundError):
            return "there is no such repository, or it is private: check the name, or hf auth login"
        if isinstance(error, errors.RevisionNotFoundError):
            return f"it has no revision {self._revision}"
        return _line(error)
