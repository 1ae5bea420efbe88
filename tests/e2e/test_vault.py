"""A controller whose signing keys are in Vault: no file has them, and Vault may be away once it runs."""

from __future__ import annotations

import json
import subprocess
from base64 import b64decode, b64encode
from pathlib import Path

import pytest

from lab.limits import within
from lab.vault_server import open_vault
from shovey_trio.core.errors import Exit
from shovey_trio.demo.commands import commands
from shovey_trio.demo.fleet import ORGANIZATION, Fleet, NodeSpec, open_fleet
from shovey_trio.demo.operator import open_operator
from shovey_trio.demo.processes import program
from shovey_trio.identity.files import write_secret

pytestmark = pytest.mark.slow


@within(110)
async def test_keys_from_vault_stay_in_force_while_it_is_away_and_are_written_nowhere(tmp_path: Path) -> None:
    async with open_vault(tmp_path) as vault:
        role, secret = await vault.role_credentials()
        write_secret(tmp_path / "secret-id", secret.encode())
        settings = {
            "secrets.signing_keys": "vault",
            "vault.address": vault.address,
            "vault.ca_file": str(vault.ca_file),
            "vault.role_id": role,
            "vault.secret_id_file": str(tmp_path / "secret-id"),
            "vault.refresh": "0.2s",
        }
        private: list[str] = []

        def into_vault(fleet: Fleet) -> None:
            file = fleet.data.signing_keys(ORGANIZATION)
            private.extend(json.loads(file.read_bytes())["private_keys"].values())
            words = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
            put = [*program("shovey-trio"), "vault", "put", "--data-dir", str(fleet.data.root), *words]
            done = subprocess.run(put, capture_output=True, check=True)
            assert done.stdout == b"shovey-trio/default/signing: version 1\n"
            file.unlink()

        nodes = [NodeSpec(name="a", whitelist=commands(str(tmp_path)))]
        async with (
            open_fleet(tmp_path, nodes, serf=False, settings=settings, before_agents=into_vault) as fleet,
            open_operator(fleet) as operator,
        ):
            assert (await operator.run("true")).states() == {"a": "succeeded"}
            await vault.seal()
            while "is sealed" not in fleet.controller.tail(200):
                fleet.controller.check()
                await operator.client.get_server_info()
            assert (await operator.run("true")).states() == {"a": "succeeded"}

            # Sealed at the start is another thing: there is no key to go on with.
            await fleet.controller.stop()
            await fleet.controller.start()
            assert await fleet.controller.wait() == Exit.UNREACHABLE.value
            assert "error: Vault at" in fleet.controller.tail()
            assert "is sealed" in fleet.controller.tail()

            await vault.unseal()
            await fleet.controller.start()
            await fleet.wait_up()
            assert (await operator.run("true")).states() == {"a": "succeeded"}

            planted = [secret.encode(), vault.root_token.encode(), *(key.encode() for key in private)]
            planted += [b64decode(key) for key in private] + [b64encode(b64decode(key)) for key in private]
            for path in fleet.directory.rglob("*"):
                if path.is_file() and path.name != "secret-id":
                    data = path.read_bytes()
                    assert not [word for word in planted if word in data], path
