;; A few bytes in 24 MiB, at both ends too.
;; calls: get(0) get(25165820) get(12582908) get(20000000)
(module
  (memory 384)
  (func (export "wizer-initialize")
    (i32.store8 (i32.const 0) (i32.const 1))
    (i32.store8 (i32.const 25165823) (i32.const 2))
    (i64.store (i32.const 12582908) (i64.const -1))
    (i32.store8 (i32.const 20000003) (i32.const 3)))
  (func (export "get") (param i32) (result i32) (i32.load (local.get 0))))
