;; wizer: unsupported mutable global containing a reference type
;; edged: reference-global
(module
  (func $f) (elem declare func $f)
  (global $r (mut funcref) (ref.null func))
  (func (export "wizer-initialize") (global.set $r (ref.func $f))))
