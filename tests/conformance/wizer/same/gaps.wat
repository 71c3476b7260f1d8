;; Runs of zeros of each length around where cutting a segment in two begins to pay.
;; calls: hash()
(module
  (memory 1)
  (func (export "wizer-initialize") (local $at i32) (local $gap i32)
    (loop $again
      (i32.store8 (local.get $at) (i32.const 1))
      (local.set $gap (i32.add (local.get $gap) (i32.const 1)))
      (local.set $at (i32.add (local.get $at) (local.get $gap)))
      (br_if $again (i32.lt_u (local.get $at) (i32.const 65000)))))
  (func (export "hash") (result i32) (local $at i32) (local $hash i32)
    (loop $again
      (local.set $hash (i32.add (i32.mul (local.get $hash) (i32.const 31))
                                (i32.load8_u (local.get $at))))
      (br_if $again (i32.lt_u (local.tee $at (i32.add (local.get $at) (i32.const 1)))
                              (i32.const 65536))))
    (local.get $hash)))
