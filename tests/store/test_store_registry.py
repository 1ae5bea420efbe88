"""Contract: nodes, users, certificates, enrolment tokens, the epoch."""

from __future__ import annotations

from dataclasses import replace

import trio

from shovey_trio.core.jobs.model import LinkMode, Presence, Role, User
from shovey_trio.store.contract import Store

from .conftest import Make

NOW = 1_800_000_000.0
DIGEST = bytes(range(32))


async def test_node_is_written_over_and_loaded_whole(store: Store, make: Make) -> None:
    await store.write_node(make.node("web-2"))
    await store.write_node(make.node("web-1"))
    changed = make.node(
        "web-1",
        agent_instance="0192",
        agent_version="0.1.0",
        link=LinkMode.ON_DEMAND,
        tags={"role": "web", "näme": ""},
        last_seen_at=NOW + 0.25,
        presence=Presence.DOWN,
        presence_since=NOW + 0.5,
        presence_reason="stream lost",
    )
    await store.write_node(changed)
    assert list(await store.load_nodes()) == [changed, make.node("web-2")]


async def test_removed_node_is_gone_and_its_history_stays(store: Store, make: Make) -> None:
    await store.write_node(make.node(), status=make.status())
    assert not await store.remove_node("other", "web-1")
    assert await store.remove_node("default", "web-1")
    assert not await store.remove_node("default", "web-1")
    assert list(await store.load_nodes()) == []
    statuses, _ = await store.list_node_statuses("default", "web-1", limit=5, after="")
    assert list(statuses) == [make.status()]


async def test_word_about_a_node_that_is_not_stored_is_dropped_where_that_is_asked_for(
    store: Store, make: Make
) -> None:
    await store.write_node(make.node(), status=make.status(), only_known=True)
    assert list(await store.load_nodes()) == []
    await store.write_node(make.node())
    changed = make.node(presence_reason="stream lost")
    await store.write_node(changed, status=make.status(), only_known=True)
    assert list(await store.load_nodes()) == [changed]
    statuses, _ = await store.list_node_statuses("default", "web-1", limit=1, after="")
    assert list(statuses) == [make.status()]


async def test_presence_history_begins_with_the_registration(store: Store, make: Make) -> None:
    node = make.node(presence=Presence.NEW)
    await store.write_node(node)
    await store.write_node(node)
    statuses, _ = await store.list_node_statuses("default", "web-1", limit=5, after="")
    assert [(status.presence, status.since) for status in statuses] == [(Presence.NEW, node.presence_since)]


async def test_presence_history_is_paged_newest_first_while_it_grows(store: Store, make: Make) -> None:
    history = [make.status(since=NOW + hour, presence=Presence.DOWN if hour % 2 else Presence.UP) for hour in range(5)]
    for status in history:
        await store.write_node(make.node(), status=status)
        await store.write_node(make.node("web-2"), status=make.status("web-2"))
    first, token = await store.list_node_statuses("default", "web-1", limit=3, after="")
    await store.write_node(make.node(), status=make.status(since=NOW + 9))
    rest, end = await store.list_node_statuses("default", "web-1", limit=3, after=token)
    assert ([*first, *rest], end) == (history[::-1], "")
    assert await store.list_node_statuses("other", "web-1", limit=3, after="") == ((), "")


async def test_users_are_written_over_removed_and_loaded(store: Store) -> None:
    admin = User(name="admin", organization="default", role=Role.ADMIN, created_at=NOW)
    for user in (replace(admin, role=Role.VIEWER), admin, replace(admin, organization="other")):
        await store.write_user(user)
    assert list(await store.load_users()) == [admin, replace(admin, organization="other")]
    assert await store.remove_user("other", "admin")
    assert not await store.remove_user("other", "admin")
    assert list(await store.load_users()) == [admin]


async def test_revoking_a_subject_revokes_all_its_certificates_and_no_other(store: Store) -> None:
    for serial, organization, subject in (
        ("0b", "default", "node/web-1"),
        ("0a", "default", "node/web-1"),
        ("0c", "default", "user/web-1"),
        ("0d", "other", "node/web-1"),
    ):
        await store.write_certificate(serial=serial, organization=organization, subject=subject, expires_at=NOW)
    assert list(await store.revoked_serials()) == []
    assert list(await store.revoke_certificates("default", "node/web-1")) == ["0a", "0b"]
    assert list(await store.revoked_serials()) == ["0a", "0b"]
    await store.write_certificate(serial="0e", organization="default", subject="node/web-1", expires_at=NOW)
    assert list(await store.revoked_serials()) == ["0a", "0b"]
    assert list(await store.revoke_certificates("default", "node/web-1")) == ["0a", "0b", "0e"]
    assert list(await store.revoke_certificates("default", "node/nobody")) == []


async def test_token_is_used_once_even_when_raced(store: Store) -> None:
    await store.write_enrollment_token(digest=DIGEST, organization="default", node="web-1", expires_at=NOW + 60)
    won: list[bool] = []

    async def use() -> None:
        won.append(await store.use_enrollment_token(digest=DIGEST, organization="default", node="web-1", now=NOW))

    async with trio.open_nursery() as nursery:
        for _ in range(50):
            nursery.start_soon(use)
    assert sorted(won) == [False] * 49 + [True]


async def test_token_serves_only_its_node_and_time_and_a_wrong_try_does_not_use_it_up(store: Store) -> None:
    await store.write_enrollment_token(digest=DIGEST, organization="default", node="web-1", expires_at=NOW + 60)

    async def use(digest: bytes, organization: str, node: str, now: float) -> bool:
        return await store.use_enrollment_token(digest=digest, organization=organization, node=node, now=now)

    assert not await use(bytes(32), "default", "web-1", NOW)
    assert not await use(DIGEST, "other", "web-1", NOW)
    assert not await use(DIGEST, "default", "web-2", NOW)
    assert not await use(DIGEST, "default", "web-1", NOW + 60)
    assert await use(DIGEST, "default", "web-1", NOW + 59.9)


async def test_a_used_token_serves_its_holder_again_until_another_of_the_node_is_used(store: Store) -> None:
    for digest, node in ((DIGEST, "web-1"), (bytes(32), "web-1"), (b"o" * 32, "web-2")):
        await store.write_enrollment_token(digest=digest, organization="default", node=node, expires_at=NOW + 60)

    async def use(digest: bytes, holder: str, *, node: str = "web-1", now: float = NOW) -> bool:
        return await store.use_enrollment_token(
            digest=digest, organization="default", node=node, now=now, holder=holder
        )

    assert await use(DIGEST, "one")
    assert not await use(DIGEST, "another")
    assert not await use(DIGEST, "")
    assert await use(DIGEST, "one")
    assert not await use(DIGEST, "one", now=NOW + 60)
    assert await use(b"o" * 32, "one", node="web-2")
    assert await use(DIGEST, "one")
    assert await use(bytes(32), "another")
    assert not await use(DIGEST, "one")


async def test_epoch_grows_even_when_the_clock_goes_back(store: Store) -> None:
    assert await store.next_epoch(1000.9) == 1000
    assert await store.next_epoch(1000.9) == 1001
    assert await store.next_epoch(5.0) == 1002
    assert await store.next_epoch(2000.0) == 2000


async def test_a_renewal_of_a_revoked_certificate_writes_nothing(store: Store) -> None:
    """However late it comes: no certificate escapes the revocation of the one it was issued for."""

    async def issue(serial: str, *, renews: str = "") -> bool:
        return await store.write_certificate(
            serial=serial, organization="default", subject="node/web-1", expires_at=NOW, renews=renews
        )

    assert await issue("01")
    assert await issue("02", renews="01")
    assert await issue("03", renews="unknown")
    await store.revoke_certificates("default", "node/web-1")
    assert not await issue("04", renews="02")
    assert list(await store.revoke_certificates("default", "node/web-1")) == ["01", "02", "03"]
    assert await issue("05")  # enrolled anew
    assert list(await store.revoked_serials()) == ["01", "02", "03"]
