;; Several results; blocks with parameters.
;; calls: pair() swap(1, 2)
(module
  (memory 1)
  (func $two (result i32 i64) (i32.load (i32.const 0)) (i64.load (i32.const 8)))
  (func (export "wizer-initialize")
    (i32.const 0) (i32.const 4) (i32.const 5)
    (block (param i32 i32) (result i32) i32.add) i32.store
    (i64.store (i32.const 8) (i64.const -3)))
  (func (export "pair") (result i32 i64) (call $two))
  (func (export "swap") (param i32 i32) (result i32 i32) (local.get 1) (local.get 0)))
