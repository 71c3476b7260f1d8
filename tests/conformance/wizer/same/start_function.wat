;; A start function runs before the initialiser, and never again.
;; calls: get() get()
(module
  (memory 1)
  (global $n (mut i32) (i32.const 1))
  (start $s)
  (func $s (global.set $n (i32.mul (global.get $n) (i32.const 10)))
    (i32.store (i32.const 8) (i32.add (i32.load (i32.const 8)) (i32.const 1))))
  (func (export "wizer-initialize") (global.set $n (i32.add (global.get $n) (i32.const 3))))
  (func (export "get") (result i32)
    (i32.add (global.get $n) (i32.mul (i32.const 1000) (i32.load (i32.const 8))))))
