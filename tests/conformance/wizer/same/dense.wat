;; Half a megabyte without a zero, then a byte alone on each page.
;; calls: get(0) get(524284) get(917503)
(module
  (memory 16)
  (func (export "wizer-initialize") (local $at i32)
    (loop $again
      (i32.store (local.get $at) (i32.or (i32.const 0x01010101) (i32.mul (local.get $at) (i32.const 0x9e3779b1))))
      (local.set $at (i32.add (local.get $at) (i32.const 4)))
      (br_if $again (i32.lt_u (local.get $at) (i32.const 0x80000))))
    (loop $again
      (i32.store8 (local.get $at) (i32.const 9))
      (local.set $at (i32.add (local.get $at) (i32.const 0x10000)))
      (br_if $again (i32.lt_u (local.get $at) (i32.const 0x100000)))))
  (func (export "get") (param i32) (result i32) (i32.load (local.get 0))))
