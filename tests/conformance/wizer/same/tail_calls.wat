;; Tail calls in the initialiser and afterwards.
;; calls: sum(10) sum(1000)
(module
  (memory 1)
  (func $count (param i32 i32) (result i32)
    (if (result i32) (local.get 0)
      (then (return_call $count (i32.sub (local.get 0) (i32.const 1))
                                (i32.add (local.get 1) (local.get 0))))
      (else (local.get 1))))
  (func (export "wizer-initialize")
    (i32.store (i32.const 0) (call $count (i32.const 100000) (i32.const 0))))
  (func (export "sum") (param i32) (result i32)
    (i32.add (i32.load (i32.const 0)) (call $count (local.get 0) (i32.const 0)))))
