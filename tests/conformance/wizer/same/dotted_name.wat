;; The older name of the initialiser.
;; init: wizer.initialize
;; calls: get()
(module
  (memory 1)
  (func (export "wizer.initialize") (i32.store8 (i32.const 3) (i32.const 255)))
  (func (export "get") (result i32) (i32.load (i32.const 0))))
