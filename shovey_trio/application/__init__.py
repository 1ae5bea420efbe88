"""What the controller does for its callers: use cases, whatever protocol they came by.

Every function takes the ``Principal`` that asks; who may call what was decided at the border (``core.trust.authz``),
what belongs to whom is decided here: a principal sees its own organization only.
"""
