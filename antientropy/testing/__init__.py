"""For whoever brings a store of their own: the tests that it must pass. Needs pytest and hypothesis."""

from __future__ import annotations

from antientropy.testing.store_contract import StoreContract

__all__ = ["StoreContract"]
