;; wizer: unsupported `table.set` instruction
;; edged: ok
;; calls: call() set() call()
(module
  (memory 1)
  (table 2 funcref) (func $f (result i32) (i32.load (i32.const 0))) (elem declare func $f)
  (func (export "wizer-initialize") (i32.store (i32.const 0) (i32.const 5)))
  (func (export "set") (table.set (i32.const 1) (ref.func $f)))
  (func (export "call") (result i32) (call_indirect (result i32) (i32.const 1))))
