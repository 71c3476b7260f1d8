;; `_initialize` runs before the initialiser; neither is exported afterwards.
;; calls: get()
(module
  (memory (export "memory") 1)
  (global $order (mut i32) (i32.const 0))
  (func $note (param i32)
    (global.set $order (i32.add (i32.mul (global.get $order) (i32.const 10)) (local.get 0))))
  (func (export "_initialize") (call $note (i32.const 1)))
  (func (export "wizer-initialize") (call $note (i32.const 2)))
  (func (export "get") (result i32) (global.get $order)))
