;; Names that are empty, long, not ASCII, or nearly those an instrumented module might use.
;; calls: () ünïcödé() __wize()
(module
  (memory (export "mem") 1)
  (global $g (export "a global") (mut i32) (i32.const 0))
  (func (export "") (result i32) (global.get $g))
  (func (export "ünïcödé") (result i32) (i32.load (i32.const 4)))
  (func (export "__wize") (result i32) (i32.const 3))
  (func (export "wizer-initialize")
    (global.set $g (i32.const 12)) (i32.store (i32.const 4) (i32.const 5)))
  (func (export "wizer.initialise") (result i32) (i32.const 4)))
