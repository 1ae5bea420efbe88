"""The account a command runs as. Blocks: accounts may come from a directory service."""

from __future__ import annotations

import grp
import os
import pwd
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar


class AccountUnusable(Exception):
    """The command cannot run as this account here; the text says why."""

    reason: ClassVar[str] = "ACCOUNT_UNUSABLE"


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """Another account than the agent's own, resolved, so that no look-up is left for the forked child."""

    name: str
    home: str
    uid: int
    gid: int
    groups: tuple[int, ...]


def resolve_account(user: str, group: str) -> Account | None:
    """Returns the account for a user and a group, either empty for the agent's own; None when nothing changes.

    Raises:
        AccountUnusable: there is none of that name, or only root could become it.
    """
    if not user and not group:
        return None
    try:
        entry = pwd.getpwnam(user) if user else pwd.getpwuid(os.geteuid())
    except KeyError:
        raise AccountUnusable(f"there is no account {user or os.geteuid()} on this node") from None
    try:
        gid = grp.getgrnam(group).gr_gid if group else entry.pw_gid
    except KeyError:
        raise AccountUnusable(f"there is no group {group} on this node") from None
    own = entry.pw_uid == os.geteuid()
    if own and (not group or gid == os.getegid()):
        return None
    if os.geteuid() != 0:
        wanted = entry.pw_name if not own else f"group {group}"
        raise AccountUnusable(f"this agent is not root and cannot run a command as {wanted}")
    groups = tuple(os.getgrouplist(entry.pw_name, gid))
    return Account(name=entry.pw_name, home=entry.pw_dir, uid=entry.pw_uid, gid=gid, groups=groups)


@contextmanager
def acting_as(account: Account | None) -> Iterator[None]:
    """Has the whole process, all threads of it, read and write files as another account, and then as itself again.

    So that root writes in a directory of somebody else's without being led elsewhere by what lies in there. For a
    program that does nothing else meanwhile. None, and the account that this process has anyway, change nothing.

    Raises:
        OSError: only root becomes another account.
    """
    if account is None or account.uid == os.geteuid():
        yield
        return
    uid, gid, groups = os.geteuid(), os.getegid(), os.getgroups()
    os.setgroups(account.groups)
    try:
        os.setegid(account.gid)
        os.seteuid(account.uid)
        yield
    finally:
        os.seteuid(uid)
        os.setegid(gid)
        os.setgroups(groups)
