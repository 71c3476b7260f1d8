;; Nothing but globals.
;; calls: get() get()
(module
  (global $n (mut i64) (i64.const 1))
  (func (export "wizer-initialize") (global.set $n (i64.const 40)))
  (func (export "get") (result i64)
    (global.set $n (i64.add (global.get $n) (i64.const 1))) (global.get $n)))
