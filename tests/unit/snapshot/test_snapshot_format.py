"""The bytes of a snapshot are a function of module, init and format: nodes compare them. SPEC §14.

Where this test fails, snapshots that were made before would be taken for lies: once something is
released, SNAPSHOT_FORMAT has to be raised with the digests here."""

from __future__ import annotations

from pathlib import Path

import pytest
from snapshot_support import take

from edged.interfaces import SNAPSHOT_FORMAT
from edged.making import plan_of
from protocol.function import InitCall, InitSpec
from protocol.ids import digest_of

COUNTER = (Path(__file__).parents[2] / "fixtures" / "wat" / "counter_init.wat").read_text()
SPARSE = """(module (memory (export "memory") 400) (memory $other 1) (global (mut v128)
  (v128.const i64x2 1 2)) (data $passive "passive") (data (i32.const 5) "active")
  (func (export "init") (param i32 i64 f32 f64)
    (i32.store (i32.const 20000000) (local.get 0)) (i64.store (i32.const 9) (local.get 1))
    (f32.store (i32.const 4000000) (local.get 2)) (f64.store $other (i32.const 8) (local.get 3))
    (memory.init $passive (i32.const 64) (i32.const 0) (i32.const 7)) (data.drop $passive)))"""
FILL = "(memory.fill (i32.const 9000000) (i32.const 7) (i32.const 1500000))"
PADDED = SPARSE.replace("(memory.init", f"{FILL} (memory.init", 1)
ARGUMENTS = InitSpec((InitCall("init", (-1, 1 << 40, 0.5, -2.25)),))


@pytest.mark.parametrize(
    ("module", "init", "digest"),
    [
        (COUNTER, InitSpec(), "014861e1f69604c887442bf99b24a86f7ca85a985629f63c7f342d78cc2ff7ac"),
        (SPARSE, ARGUMENTS, "02003cb0958642194a09c96f92fbc06d1291badb045a4d7ab12d0c1fcc637c86"),
        (PADDED, ARGUMENTS, "9b37b2e13fe25fca11ddf74fea7475b0486ee7ae2eb7f7fb43fb5d32921106e1"),
    ],
)
def test_other_bytes_are_another_format(module: str, init: InitSpec, digest: str) -> None:
    made, _ = take(module, *plan_of(init))
    assert (SNAPSHOT_FORMAT, digest_of(made)) == (1, digest)
