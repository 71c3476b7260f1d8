;; A few bytes in 64 MiB, at both ends too.
;; calls: get(0) get(67108860) get(33554428) get(50000000)
(module
  (memory 1024)
  (func (export "wizer-initialize")
    (i32.store8 (i32.const 0) (i32.const 1))
    (i32.store8 (i32.const 67108863) (i32.const 2))
    (i64.store (i32.const 33554428) (i64.const -1))
    (i32.store8 (i32.const 50000003) (i32.const 3)))
  (func (export "get") (param i32) (result i32) (i32.load (local.get 0))))
