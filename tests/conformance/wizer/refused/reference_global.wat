;; A mutable global that refers to a function and still does.
;; wizer: unsupported mutable global containing a reference type
;; edged: ok
;; calls: null() clear() null()
(module
  (func $f) (global $r (mut funcref) (ref.func $f))
  (memory 1)
  (func (export "wizer-initialize") (i32.store (i32.const 0) (i32.const 1)))
  (func (export "clear") (global.set $r (ref.null func)))
  (func (export "null") (result i32) (ref.is_null (global.get $r))))
