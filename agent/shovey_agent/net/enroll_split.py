"""What root prepares before it enrols an agent that is to be two parts."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from shovey_agent.net.enroll import Split
from shovey_agent.run.accounts import AccountUnusable, resolve_account
from shovey_trio.core.errors import Code, Exit, ShoveyError
from shovey_trio.identity.files import SECRET_DIRECTORY_MODE


class CannotSplit(ShoveyError):
    """This process cannot give one part of an agent to another account; the message says why."""

    reason, code, http, exit = "CANNOT_SPLIT", Code.FAILED_PRECONDITION, 500, Exit.USAGE


def prepare_split(state_dir: Path, launcher_dir: Path, *, user: str) -> Split:
    """Makes the network part's directory, for its account alone, and says who gets what. Blocks.

    Raises:
        CannotSplit: there is no such account, or this is not root.
        OSError: the directory cannot be made.
    """
    try:
        account = resolve_account(user, "")
    except AccountUnusable as error:
        raise CannotSplit(str(error)) from error
    state_dir.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileExistsError):
        # Only what was made just now is given away: what is there already may have been put there by anybody.
        state_dir.mkdir(mode=SECRET_DIRECTORY_MODE)
        if account is not None:
            os.chown(state_dir, account.uid, account.gid, follow_symlinks=False)
    return Split(account=account, launcher_dir=launcher_dir)
