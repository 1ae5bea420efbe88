"""The keys of one principal: several PEM blocks in one text."""

from __future__ import annotations

from functools import cache

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from lab.chef_client import make_key, public_pem
from shovey_trio.core.chef.keys import MAX_KEYS, read_chef_keys, write_chef_keys
from shovey_trio.core.errors import InvalidRequest


@cache
def pem(number: int) -> str:
    return public_pem(make_key()) + "\n" * number


def test_keys_of_a_text_are_read_in_their_order_each_once() -> None:
    keys = read_chef_keys("a note\n" + pem(0) + "\n" + pem(1) + pem(0))
    assert [key.pem.strip() for key in keys] == [pem(0).strip(), pem(1).strip()]
    assert read_chef_keys(write_chef_keys(keys)) == keys


def test_id_of_a_key_does_not_depend_on_the_form_it_came_in() -> None:
    (key,) = read_chef_keys(pem(0))
    pkcs1 = key.public_key.public_bytes(Encoding.PEM, PublicFormat.PKCS1).decode()
    assert "RSA PUBLIC KEY" in pkcs1
    (again,) = read_chef_keys(pkcs1)
    assert again.key_id == key.key_id
    assert len(key.key_id) == 16


@pytest.mark.parametrize("text", ["", "no key", "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n"])
def test_text_without_a_usable_key_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest):
        read_chef_keys(text)


def test_one_bad_block_among_good_ones_refuses_the_text() -> None:
    with pytest.raises(InvalidRequest):
        read_chef_keys(pem(0) + "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n")


def test_more_keys_than_one_may_have_are_refused() -> None:
    text = "".join(pem(number) for number in range(MAX_KEYS))
    assert len(read_chef_keys(text)) == MAX_KEYS
    with pytest.raises(InvalidRequest, match="10 keys"):
        read_chef_keys(text + pem(MAX_KEYS))
