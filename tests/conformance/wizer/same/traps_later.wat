;; What traps after the snapshot traps as it would have without.
;; calls: div(0) oob() unreachable() null() get() wrong_type()
(module
  (memory 1)
  (table 2 funcref)
  (func $f (param i32))
  (elem (i32.const 1) $f)
  (func (export "wizer-initialize") (i32.store (i32.const 0) (i32.const 9)))
  (func (export "div") (param i32) (result i32) (i32.div_s (i32.load (i32.const 0)) (local.get 0)))
  (func (export "oob") (result i32) (i32.load (i32.const 65533)))
  (func (export "unreachable") unreachable)
  (func (export "null") (call_indirect (i32.const 0)))
  (func (export "wrong_type") (call_indirect (i32.const 1)))
  (func (export "get") (result i32) (i32.load (i32.const 0))))
