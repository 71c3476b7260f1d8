;; wizer: unsupported `table.set` instruction
;; edged: ok
;; calls: null(0) null(1)
(module
  (table 2 funcref) (func $f) (elem declare func $f)
  (func (export "wizer-initialize")
    (table.set (i32.const 0) (ref.func $f)) (table.set (i32.const 0) (ref.null func)))
  (func (export "null") (param i32) (result i32) (ref.is_null (table.get (local.get 0)))))
