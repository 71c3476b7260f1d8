;; 10,000 islands far enough apart for a segment each.
;; calls: get(64) get(63)
(module
  (memory 64)
  (func (export "wizer-initialize") (local $at i32)
    (loop $again
      (i32.store8 (local.get $at) (i32.const 7))
      (local.set $at (i32.add (local.get $at) (i32.const 64)))
      (br_if $again (i32.lt_u (local.get $at) (i32.const 640000)))))
  (func (export "get") (param i32) (result i32) (i32.load8_u (local.get 0))))
