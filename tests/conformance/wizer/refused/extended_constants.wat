;; wizer: constant expression required
;; edged: ok
;; calls: get()
(module
  (global $a i32 (i32.const 40))
  (global $b (mut i32) (i32.add (global.get $a) (i32.const 2)))
  (memory 1)
  (data (i32.sub (global.get $a) (i32.const 40)) "\01")
  (func (export "wizer-initialize")
    (global.set $b (i32.add (global.get $b) (i32.load (i32.const 0)))))
  (func (export "get") (result i32) (global.get $b)))
