;; Sums where a constant is wanted.
;; calls: get()
(module
  (global $a (mut i32) (i32.add (i32.const 40) (i32.const 2)))
  (global $kept (mut i64) (i64.mul (i64.const 4) (i64.const -2)))
  (memory 1)
  (table 4 funcref)
  (func $f)
  (elem (i32.sub (i32.const 4) (i32.const 1)) $f)
  (data (i32.sub (i32.const 8) (i32.const 8)) "\01")
  (func (export "wizer-initialize")
    (global.set $a (i32.add (global.get $a) (i32.load (i32.const 0)))))
  (func (export "get") (result i32)
    (call_indirect (i32.const 3)) (i32.add (global.get $a) (i32.wrap_i64 (global.get $kept)))))
