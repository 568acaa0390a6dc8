"""Uploads an export to a repository of the Hugging Face Hub, by huggingface_hub, which the extra `hub` installs.

HF_ENDPOINT names another hub, and the token is HF_TOKEN's or the one that `hf auth login` stored.
"""

from __future__ import annotations

import re
import shlex
import threading
from pathlib import Path
from typing import Any, Callable, List, Optional

from vit_ipu.errors import RunFailed, UserError
from vit_ipu.text import reason_of

SECONDS = 5.0
"""Time for an answer of the hub to a question; an upload has no such limit."""
_REFUSED, _FORBIDDEN = 401, 403
_THERE_FROM_THE_START = ".gitattributes"
"""File that the hub puts into every new repository."""


class HubUpload:
    """An upload to one repository: `prepare` checks what needs no network, `connect` asks the hub, `send` uploads."""

    def __init__(self, api: Any, repository: str, *, private: bool) -> None:
        self._api, self._repository, self._private = api, repository, private

    @classmethod
    def prepare(cls, repository: str, to: str, *, private: bool) -> HubUpload:
        """Returns the upload to `repository`, of the form OWNER/NAME.

        Raises UserError for another format than huggingface, a bad name, a missing huggingface_hub or no token.
        """
        option = f"--push {repository}"
        if to != "huggingface":
            raise UserError(f"{option}: the hub takes exports --to huggingface, not --to {to}")
        if re.fullmatch(r"[\w.-]+/[\w.-]+", repository, re.ASCII) is None:
            raise UserError(f"{option}: the name of a repository is of the form OWNER/NAME")
        try:
            import huggingface_hub
            from huggingface_hub import constants
            from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]
        except ImportError:
            raise UserError(f"{option} needs the extra hub: pip install 'vit-ipu[hub]'") from None
        try:
            validate_repo_id(repository)
        except ValueError as error:
            raise UserError(f"{option}: {reason_of(error).rstrip('.')}; give another name") from None
        if constants.HF_HUB_OFFLINE:
            raise UserError(f"{option}: HF_HUB_OFFLINE forbids the network: unset it")
        token = huggingface_hub.get_token()
        if token is None:
            raise UserError(f"{option}: there is no token: set HF_TOKEN, or run hf auth login")
        return cls(huggingface_hub.HfApi(token=token), repository, private=private)

    @property
    def address(self) -> str:
        """The address of the repository's page."""
        return f"{self._api.endpoint}/{self._repository}"

    def connect(self) -> None:
        """Asks the hub whether the token is good, and the repository new or empty.

        Raises UserError if not, and if the hub does not answer within SECONDS.
        """
        self._ask(self._api.whoami)
        found = self._ask(self._look)
        if found is None:
            return
        names = [file.rfilename for file in found.siblings if file.rfilename != _THERE_FROM_THE_START]
        if names:
            raise UserError(
                f"--push {self._repository}: the repository already has {names[0]}: give another name, or convert "
                f"without --push and upload with hf upload {self._repository} FOLDER"
            )
        if self._private and not found.private:
            raise UserError(
                f"--push {self._repository}: the repository exists and is public, and --private makes only new ones "
                f"private: change it at {self.address}/settings, or leave --private out"
            )

    def _look(self) -> Optional[Any]:
        """Returns what the hub says of the repository; None if there is none that the token may see."""
        from huggingface_hub.errors import RepositoryNotFoundError

        try:
            return self._api.model_info(self._repository)
        except RepositoryNotFoundError:
            return None

    def _ask(self, question: Callable[[], Any]) -> Any:
        """Returns the answer to a question. Raises UserError if the hub refuses the token or cannot be reached."""
        answers: List[Any] = []
        problems: List[Exception] = []

        def call() -> None:
            try:
                answers.append(question())
            except Exception as error:  # of requests or httpx, depending on huggingface_hub's version
                problems.append(error)

        thread = threading.Thread(target=call, daemon=True)  # looking up a name has no time limit of its own
        thread.start()
        thread.join(SECONDS)
        if answers:
            return answers[0]
        option, where = f"--push {self._repository}", self._api.endpoint
        if problems and _status(problems[0]) == _REFUSED:
            raise UserError(
                f"{option}: {where} refused the token ({_REFUSED}): make one that may write at "
                f"{where}/settings/tokens, and set HF_TOKEN or run hf auth login"
            ) from problems[0]
        reason = reason_of(problems[0]) if problems else f"no answer within {SECONDS:g} s"
        raise UserError(
            f"{option}: cannot reach {where} ({reason}): check the network and HF_ENDPOINT, or convert without --push"
        ) from (problems[0] if problems else None)

    def send(self, folder: Path) -> None:
        """Makes the repository and uploads all files of a folder in one commit.

        Raises UserError if the token may not write there, and RunFailed for any other failure; the folder stays.
        """
        from huggingface_hub import CommitOperationAdd

        files = [CommitOperationAdd(path.name, str(path)) for path in sorted(folder.iterdir())]
        # None leaves the choice to the hub: public, unless the owner's organisation makes new repositories private.
        private = True if self._private else None
        message = "Upload the export of vit_ipu"
        try:
            self._api.create_repo(self._repository, private=private, exist_ok=True)
            self._api.create_commit(self._repository, files, commit_message=message)
        except Exception as error:  # of requests or httpx, depending on huggingface_hub's version
            later = f"{folder} is complete: hf upload {self._repository} {shlex.quote(str(folder))}"
            if _status(error) in (_REFUSED, _FORBIDDEN):
                raise UserError(
                    f"--push {self._repository}: the token may not write there ({_status(error)}): give it the write "
                    f"role, or another OWNER; {later}"
                ) from error
            raise RunFailed(f"--push {self._repository}: the upload failed: {reason_of(error)}; {later}") from error


def _status(error: Exception) -> Optional[int]:
    """Returns the HTTP status of the answer that an error is about; None if there was no answer."""
    return getattr(getattr(error, "response", None), "status_code", None)
