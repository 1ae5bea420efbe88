"""Which node a schob is that calls itself something.

A schob has one name for everything, its client name: it beats, signs and reports under it. That name is the node's, as
the Chef server has it, or ``organization:node``, as the node's serf agent is called.
"""

from __future__ import annotations

from shovey_trio.core.jobs.model import Node
from shovey_trio.nursery.registry import NodeRegistry
from shovey_trio.shovey.kind import KIND


def nodes_called(registry: NodeRegistry, name: str) -> list[Node]:
    """The old nodes that a schob of this name may be: several where organizations have nodes of the same name."""
    organization, _, node = name.partition(":")
    longer = registry.get(organization, node)
    found = registry.named(name) or ([] if longer is None else [longer])
    return [node for node in found if node.link == KIND]


def node_name(name: str, organization: str) -> str:
    """A node's name in its organization, whichever of its two names was given."""
    return name.removeprefix(f"{organization}:")
