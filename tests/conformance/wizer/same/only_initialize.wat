;; A WASI reactor with no initialiser of its own.
;; init: _initialize
;; calls: get()
(module
  (memory (export "memory") 1)
  (func (export "_initialize")
    (i32.store (i32.const 0) (i32.add (i32.load (i32.const 0)) (i32.const 1))))
  (func (export "get") (result i32) (i32.load (i32.const 0))))
